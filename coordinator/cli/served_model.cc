#include "coordinator/cli/served_model.h"

#include <ctime>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/model/config.h"
#include "common/weights/gguf.h"
#include "coordinator/tokenizer/chat_template.h"

namespace packtrain {
namespace {

DeploymentInfo MakeInfo(const ModelEntry& entry, int context, const GgufFile& file,
                        const ModelConfig& config) {
  DeploymentInfo info;
  info.name = entry.name;
  info.role = entry.role;
  info.architecture = std::string(file.GetString("general.architecture").value_or(""));
  info.context_length = context;
  for (const GgufTensor& tensor : file.tensors()) info.parameters += tensor.elements();
  for (const GgufFile::Shard& shard : file.shards()) info.file_bytes += shard.bytes.size();
  info.created_unix_s = std::time(nullptr);
  info.thinking = entry.thinking;
  info.recurrent = config.has_recurrent_state();
  return info;
}

std::string PieceOrEmpty(const Tokenizer& tokenizer, TokenId id) {
  return id < 0 ? "" : std::string(tokenizer.Piece(id, true));
}

std::unique_ptr<ChatTemplate> MakeTemplate(const ModelEntry& entry, const GgufFile& file,
                                           const Tokenizer& tokenizer, ChatTemplateHost* host,
                                           std::vector<std::string>* warnings) {
  const auto text = file.GetString("tokenizer.chat_template");
  if (!text.ok()) {
    warnings->push_back(absl::StrFormat(
        "%s: the file has no chat template; it serves completions, not chats", entry.name));
    return nullptr;
  }
  auto chat_template =
      std::make_unique<ChatTemplate>(std::string(*text), PieceOrEmpty(tokenizer, tokenizer.bos()),
                                     PieceOrEmpty(tokenizer, tokenizer.eos()), host);
  if (const absl::Status status = chat_template->Check(); !status.ok()) {
    warnings->push_back(absl::StrFormat("%s: chats will fail: %s", entry.name, status.message()));
  } else if (!chat_template->SupportsThinkingSwitch()) {
    warnings->push_back(absl::StrFormat(
        "%s: its chat template has no switch for thinking; it thinks or not as it was trained",
        entry.name));
  }
  return chat_template;
}

}  // namespace

absl::StatusOr<ServedModel> OpenModel(const ModelEntry& entry, int context) {
  ServedModel model;
  model.entry = entry;
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(entry.path));
  ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(*file));
  ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Create(*file));
  model.template_host = ChatTemplateHost::Create();
  std::unique_ptr<ChatTemplate> chat_template =
      MakeTemplate(model.entry, *file, *tokenizer, model.template_host.get(), &model.warnings);
  model.deployment = std::make_unique<DeploymentRunner>(
      MakeInfo(model.entry, context, *file, config), std::move(tokenizer), std::move(chat_template),
      DeploymentRunner::Options());
  return model;
}

}  // namespace packtrain
