#include "tests/support/model_golden.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_replace.h"
#include "tests/support/test_files.h"

namespace packtrain {

ModelGolden ReadModelGolden(const std::string& directory, const std::string& configuration) {
  // Statistics that nobody reads here may be Infinity, which is not JSON.
  const std::string text =
      absl::StrReplaceAll(ReadFileOrDie(directory + "/golden.json"), {{":Infinity", ":null"}});
  const auto json = nlohmann::json::parse(text);
  const auto file = [&](const std::string& name, const std::string& suffix) {
    return directory + "/" + name + "_" + configuration + suffix + ".npy";
  };
  ModelGolden golden;
  const auto& greedy = json.at("greedy").at(configuration);
  for (size_t i = 0; i < json.at("prompts").size(); ++i) {
    const auto& prompt = json["prompts"][i];
    golden.prompts.push_back({.name = prompt.at("name"),
                              .ids = prompt.at("ids"),
                              .row_offset = prompt.at("row_offset"),
                              .greedy_ids = greedy.at(i).at("ids"),
                              .greedy_margins = greedy.at(i).at("margins")});
  }
  golden.last_logits = ReadNpyF32(file("logits", ""));
  golden.top_ids = ReadNpyU16(file("top20", "_ids"));
  golden.top_logits = ReadNpyF32(file("top20", "_logits"));
  golden.text_ids = json.at("ppl_text").at("ids").get<std::vector<TokenId>>();
  golden.text_logprobs = ReadNpyF32(file("ppl_logprobs", ""));
  golden.has_mtp = json.contains("mtp") && json["mtp"].contains(configuration);
  if (!golden.has_mtp) return golden;
  golden.mtp_logits = ReadNpyF32(file("mtp_logits", ""));
  golden.mtp_top_ids = ReadNpyU16(file("mtp_top5", "_ids"));
  golden.mtp_top_logits = ReadNpyF32(file("mtp_top5", "_logits"));
  for (const auto& prompt : json["mtp"][configuration].at("drafts")) {
    auto& drafts = golden.drafts.emplace_back();
    for (const auto& draft : prompt.at("drafts")) {
      drafts.push_back({.input = draft.at("input_token"),
                        .draft = draft.at("draft"),
                        .margin = draft.at("margin")});
    }
  }
  return golden;
}

}  // namespace packtrain
