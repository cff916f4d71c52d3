#include "common/config/host_facts.h"

#include <algorithm>
#include <exception>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"

namespace packtrain {
namespace {

using Json = nlohmann::ordered_json;

// One list of fields serves both directions: `Fields(io, facts)` names each field once, a writer
// puts it into the object, a reader takes it out.
class Writer {
 public:
  explicit Writer(Json* object) : object_(object) {}

  template <typename T>
  void Field(const char* key, T& value) {
    Put(&(*object_)[key], value);
  }

 private:
  template <typename T>
  static void Put(Json* json, T& value) {
    if constexpr (requires(Writer w) { Fields(w, value); }) {
      *json = Json::object();
      Writer inner(json);
      Fields(inner, value);
    } else {
      *json = value;
    }
  }
  template <typename T>
  static void Put(Json* json, std::vector<T>& values) {
    *json = Json::array();
    for (T& value : values) {
      json->emplace_back();
      Put(&json->back(), value);
    }
  }
  static void Put(Json* json, uint64_t& value) {
    if (value == kUnlimited) {
      *json = "unlimited";
    } else {
      *json = value;
    }
  }

  Json* object_;
};

class Reader {
 public:
  Reader(const Json& object, std::string place) : object_(object), place_(std::move(place)) {
    if (!object.is_object()) Fail(place_.empty() ? "host facts" : place_, "an object", object);
  }

  template <typename T>
  void Field(const char* key, T& value) {
    known_.push_back(key);
    if (const auto it = object_.find(key); it != object_.end()) {
      Take(*it, absl::StrCat(place_, place_.empty() ? "" : ".", key), value);
    }
  }
  void RefuseOthers() const {
    for (const auto& item : object_.items()) {
      if (std::find(known_.begin(), known_.end(), item.key()) == known_.end()) {
        throw std::invalid_argument(absl::StrCat("unknown key '", item.key(), "' in ",
                                                 place_.empty() ? "host facts" : place_));
      }
    }
  }

 private:
  [[noreturn]] static void Fail(const std::string& place, const char* wanted, const Json& found) {
    throw std::invalid_argument(
        absl::StrCat(place, " must be ", wanted, ", not ", found.dump().substr(0, 60)));
  }
  template <typename T>
  static void Take(const Json& json, const std::string& place, T& value) {
    Reader inner(json, place);
    Fields(inner, value);
    inner.RefuseOthers();
  }
  template <typename T>
  static void Take(const Json& json, const std::string& place, std::vector<T>& values) {
    if (!json.is_array()) Fail(place, "a list", json);
    values.clear();
    for (const Json& item : json) {
      values.emplace_back();
      Take(item, absl::StrCat(place, "[", values.size() - 1, "]"), values.back());
    }
  }
  static void Take(const Json& json, const std::string& place, std::string& value) {
    if (!json.is_string()) Fail(place, "a string", json);
    value = json.get<std::string>();
  }
  static void Take(const Json& json, const std::string& place, bool& value) {
    if (!json.is_boolean()) Fail(place, "true or false", json);
    value = json.get<bool>();
  }
  static void Take(const Json& json, const std::string& place, int& value) {
    if (!json.is_number_integer() || json.get<int64_t>() < -1 || json.get<int64_t>() > 1 << 24) {
      Fail(place, "a whole number", json);
    }
    value = json.get<int>();
  }
  static void Take(const Json& json, const std::string& place, double& value) {
    if (!json.is_number() || !(json.get<double>() >= 0) || json.get<double>() > 1e15) {
      Fail(place, "a number that is not negative", json);
    }
    value = json.get<double>();
  }
  static void Take(const Json& json, const std::string& place, uint64_t& value) {
    if (json.is_string() && json.get<std::string>() == "unlimited") {
      value = kUnlimited;
    } else if (json.is_number_unsigned() && json.get<uint64_t>() < uint64_t{1} << 60) {
      value = json.get<uint64_t>();
    } else {
      Fail(place, "a number of bytes", json);
    }
  }

  const Json& object_;
  std::string place_;
  std::vector<std::string> known_;
};

template <typename Io>
void Fields(Io& io, CacheFacts& f) {
  io.Field("level", f.level);
  io.Field("bytes", f.bytes);
  io.Field("cores", f.cores);
}

template <typename Io>
void Fields(Io& io, NumaFacts& f) {
  io.Field("node", f.node);
  io.Field("cores", f.cores);
  io.Field("memory_bytes", f.memory_bytes);
}

template <typename Io>
void Fields(Io& io, CpuFacts& f) {
  io.Field("model", f.model);
  io.Field("isa", f.isa);
  io.Field("cores", f.cores);
  io.Field("threads", f.threads);
  io.Field("cpu_limit", f.cpu_limit);
  io.Field("caches", f.caches);
  io.Field("numa", f.numa);
}

template <typename Io>
void Fields(Io& io, MemoryFacts& f) {
  io.Field("total_bytes", f.total_bytes);
  io.Field("available_bytes", f.available_bytes);
  io.Field("cgroup_bytes", f.cgroup_bytes);
  io.Field("cgroup_used_bytes", f.cgroup_used_bytes);
  io.Field("locked_bytes", f.locked_bytes);
  io.Field("huge_page_bytes", f.huge_page_bytes);
  io.Field("huge_pages", f.huge_pages);
  io.Field("huge_pages_free", f.huge_pages_free);
  io.Field("private_huge_pages", f.private_huge_pages);
  io.Field("shared_huge_pages", f.shared_huge_pages);
  io.Field("shared_memory_bytes", f.shared_memory_bytes);
  io.Field("module_speed", f.module_speed);
  io.Field("module_speed_max", f.module_speed_max);
  io.Field("modules", f.modules);
}

template <typename Io>
void Fields(Io& io, ReadRate& f) {
  io.Field("threads", f.threads);
  io.Field("gb_per_s", f.gb_per_s);
}

template <typename Io>
void Fields(Io& io, StorageFacts& f) {
  io.Field("path", f.path);
  io.Field("file", f.file);
  io.Field("read_gb_per_s", f.read_gb_per_s);
  io.Field("rotational", f.rotational);
}

template <typename Io>
void Fields(Io& io, WeightRate& f) {
  io.Field("type", f.type);
  io.Field("read_gb_per_s", f.read_gb_per_s);
  io.Field("pass_gb_per_s", f.pass_gb_per_s);
  io.Field("tflops", f.tflops);
  io.Field("experts_gb_per_s", f.experts_gb_per_s);
  io.Field("experts_down_gb_per_s", f.experts_down_gb_per_s);
  io.Field("experts_pass_gb_per_s", f.experts_pass_gb_per_s);
  io.Field("experts_tflops", f.experts_tflops);
}

template <typename Io>
void Fields(Io& io, GpuFacts& f) {
  io.Field("index", f.index);
  io.Field("name", f.name);
  io.Field("pci", f.pci);
  io.Field("memory_bytes", f.memory_bytes);
  io.Field("free_bytes", f.free_bytes);
  io.Field("link_gt_per_s", f.link_gt_per_s);
  io.Field("link_gt_per_s_max", f.link_gt_per_s_max);
  io.Field("link_lanes", f.link_lanes);
  io.Field("link_lanes_max", f.link_lanes_max);
  io.Field("numa_node", f.numa_node);
  io.Field("read_gb_per_s", f.read_gb_per_s);
  io.Field("bf16_tflops", f.bf16_tflops);
  io.Field("to_device_gb_per_s", f.to_device_gb_per_s);
  io.Field("from_device_gb_per_s", f.from_device_gb_per_s);
  io.Field("flag_round_trip_us", f.flag_round_trip_us);
  io.Field("peers", f.peers);
  io.Field("compute_capability", f.compute_capability);
  io.Field("multiprocessors", f.multiprocessors);
  io.Field("product_us", f.product_us);
  io.Field("weight_rates", f.weight_rates);
}

template <typename Io>
void Fields(Io& io, HostFacts& f) {
  io.Field("name", f.name);
  io.Field("kernel", f.kernel);
  io.Field("cpu", f.cpu);
  io.Field("memory", f.memory);
  io.Field("dram_read", f.dram_read);
  io.Field("experts_read_gb_per_s", f.experts_read_gb_per_s);
  io.Field("weight_rates", f.weight_rates);
  io.Field("experts_layer_us", f.experts_layer_us);
  io.Field("experts_threads", f.experts_threads);
  io.Field("thread_round_trip_us", f.thread_round_trip_us);
  io.Field("process_round_trip_us", f.process_round_trip_us);
  io.Field("storage", f.storage);
  io.Field("gpus", f.gpus);
  io.Field("gpu_note", f.gpu_note);
}

}  // namespace

uint64_t MemoryFacts::usable_bytes() const {
  if (cgroup_bytes == kUnlimited) return available_bytes;
  return std::min(available_bytes, cgroup_bytes - std::min(cgroup_bytes, cgroup_used_bytes));
}

double HostFacts::DramRead(int threads) const {
  double best = 0;
  for (const ReadRate& rate : dram_read) {
    if (threads == 0 || rate.threads <= threads) best = std::max(best, rate.gb_per_s);
  }
  return best;
}

std::string HostFactsToJson(const HostFacts& facts) {
  HostFacts copy = facts;  // the field list is shared with the reader, which needs them mutable
  Json json = Json::object();
  Writer writer(&json);
  Fields(writer, copy);
  // Names come from the system and need not be UTF-8.
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

absl::StatusOr<HostFacts> HostFactsFromJson(std::string_view text) {
  try {
    const Json json = Json::parse(text);
    HostFacts facts;
    Reader reader(json, "");
    Fields(reader, facts);
    reader.RefuseOthers();
    return facts;
  } catch (const std::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat("host facts: ", e.what()));
  }
}

}  // namespace packtrain
