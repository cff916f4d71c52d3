// Opens every case of manifest.json and compares the answer with what the manifest demands: values,
// tensor bytes, kinds of error. Also counts what the reader allocates, because most of the hostile
// files announce sizes that are not there.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/sha.h>

#include <bit>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "common/weights/gguf.h"
#include "tests/support/allocation_counter.h"
#include "tests/support/test_files.h"

namespace packtrain {
namespace {

using Json = nlohmann::json;

const char* const kTypeNames[] = {"u8",   "i8",  "u16", "i16", "u32", "i32", "f32",
                                  "bool", "str", "arr", "u64", "i64", "f64"};

std::string TypeNameOf(GgufValueType type) { return kTypeNames[static_cast<uint32_t>(type)]; }

std::string CasePath(const std::string& file) {
  return std::string(PACKTRAIN_BINARY_DIR) + "/tests/golden/gguf/" + file;
}

const Json& Manifest() {
  static const Json manifest =
      Json::parse(ReadFileOrDie(PACKTRAIN_SOURCE_DIR "/tests/golden/gguf/manifest.json"));
  return manifest;
}

std::string Sha256(std::span<const std::byte> bytes) {
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
         reinterpret_cast<unsigned char*>(digest.data()));
  return absl::BytesToHexString(digest);
}

// "bad_dim" of "[bad_dim] x.gguf: ...".
std::string Kind(const absl::Status& status) {
  const std::string message(status.message());
  const size_t end = message.find(']');
  if (message.empty() || message[0] != '[' || end == message.npos) return "";
  return message.substr(1, end - 1);
}

// One scalar, or element `i` of an array of numbers, as the manifest writes it.
Json ToJson(const GgufValue& value) {
  return std::visit(
      [](auto scalar) -> Json {
        using T = decltype(scalar);
        if constexpr (std::is_same_v<T, std::string_view>) {
          return std::string(scalar);
        } else if constexpr (std::is_same_v<T, bool>) {
          return scalar ? 1 : 0;
        } else {
          return scalar;
        }
      },
      value.scalar);
}

void ExpectArray(const GgufFile& file, const std::string& key, const GgufValue& value,
                 const Json& want) {
  ASSERT_EQ(value.array_size, want.size());
  if (value.element_type == GgufValueType::kString) {
    const auto strings = file.GetStringArray(key);
    ASSERT_TRUE(strings.ok()) << strings.status();
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(std::string((*strings)[i]), want[i].get<std::string>());
    }
  } else if (value.element_type == GgufValueType::kF32) {
    const auto floats = file.GetFloatArray(key);
    ASSERT_TRUE(floats.ok()) << floats.status();
    EXPECT_EQ(Json(*floats), want);
  } else if (value.element_type == GgufValueType::kF64) {
    for (size_t i = 0; i < want.size(); ++i) {
      double element;
      std::memcpy(&element, value.array_data.data() + 8 * i, 8);
      EXPECT_EQ(std::bit_cast<uint64_t>(element), std::bit_cast<uint64_t>(want[i].get<double>()));
    }
  } else if (value.element_type == GgufValueType::kU64) {  // beyond int64
    for (size_t i = 0; i < want.size(); ++i) {
      uint64_t element;
      std::memcpy(&element, value.array_data.data() + 8 * i, 8);
      EXPECT_EQ(element, want[i].get<uint64_t>());
    }
  } else {
    const auto ints = file.GetIntArray(key);
    ASSERT_TRUE(ints.ok()) << ints.status();
    EXPECT_EQ(Json(*ints), want);
  }
}

void ExpectMetadata(const GgufFile& file, const Json& want) {
  size_t next = 0;
  for (const auto& [key, value] : file.metadata()) {
    if (key == "t.bytes") {  // not UTF-8, so the manifest cannot hold it
      EXPECT_EQ(absl::BytesToHexString(std::string(std::get<std::string_view>(value.scalar))),
                "fffe0080726177");
      continue;
    }
    ASSERT_LT(next, want.size()) << key;
    const Json& entry = want[next++];
    SCOPED_TRACE(key);
    EXPECT_EQ(key, entry[0].get<std::string>());
    EXPECT_EQ(file.Find(key), &value);
    const std::string type = entry[1].get<std::string>();
    if (value.type == GgufValueType::kArray) {
      EXPECT_EQ("arr:" + TypeNameOf(value.element_type), type);
      ExpectArray(file, key, value, entry[2]);
    } else {
      EXPECT_EQ(TypeNameOf(value.type), type);
      EXPECT_EQ(ToJson(value), entry[2]);
    }
  }
  EXPECT_EQ(next, want.size());
}

void ExpectTensors(const GgufFile& file, const Json& want) {
  ASSERT_EQ(file.tensors().size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    const GgufTensor& tensor = file.tensors()[i];
    SCOPED_TRACE(tensor.name);
    EXPECT_EQ(tensor.name, want[i]["name"].get<std::string>());
    EXPECT_EQ(file.FindTensor(tensor.name), &tensor);
    EXPECT_EQ(static_cast<uint32_t>(tensor.type), want[i]["type"].get<uint32_t>());
    EXPECT_EQ(std::string(TypeName(tensor.type)), want[i]["type_name"].get<std::string>());
    EXPECT_EQ(Json(tensor.dims), want[i]["dims"]);
    EXPECT_EQ(tensor.offset, want[i]["offset"].get<uint64_t>());
    EXPECT_EQ(tensor.bytes, want[i]["nbytes"].get<uint64_t>());
    EXPECT_EQ(tensor.shard, want[i].value("shard", 0u));
    EXPECT_EQ(tensor.file_offset, file.shards()[tensor.shard].data_offset + tensor.offset);
    EXPECT_EQ(Sha256(file.Data(tensor)), want[i]["sha256"].get<std::string>());
  }
}

TEST(GgufGoldenTest, EveryCaseIsAnsweredAsTheManifestSays) {
  ASSERT_EQ(Manifest()["cases"].size(), 159u);
  for (const Json& test_case : Manifest()["cases"]) {
    const std::string path = CasePath(test_case["file"].get<std::string>());
    SCOPED_TRACE(path + ": " + test_case["why"].get<std::string>());
    const auto file = GgufFile::Open(path);
    const std::string expect = test_case["expect"].get<std::string>();
    if (expect == "accept") {
      ASSERT_TRUE(file.ok()) << file.status();
      EXPECT_EQ((*file)->shards()[0].version, test_case.value("version", 3u));
      if (test_case.contains("alignment")) {
        EXPECT_EQ((*file)->shards()[0].alignment, test_case["alignment"].get<uint64_t>());
      }
      if (test_case.contains("data_offset")) {
        EXPECT_EQ((*file)->shards()[0].data_offset, test_case["data_offset"].get<uint64_t>());
      }
      ExpectMetadata(**file, test_case["metadata"]);
      ExpectTensors(**file, test_case["tensors"]);
      continue;
    }
    if (file.ok()) {
      EXPECT_EQ(expect, "either") << "accepted";
      continue;
    }
    std::vector<std::string> kinds = test_case.value("also_ok", std::vector<std::string>());
    kinds.push_back(test_case["error"].get<std::string>());
    EXPECT_EQ(file.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(kinds, testing::Contains(Kind(file.status()))) << file.status();
    const std::string stem = std::filesystem::path(path).filename().string().substr(0, 12);
    EXPECT_THAT(std::string(file.status().message()), testing::HasSubstr(stem));
    EXPECT_LT(file.status().message().size(), 1000u);
  }
}

// The factor covers string views (16 bytes for 8 in the file), metadata entries, the tensor table
// and growth by doubling; the constant the fixed objects, hash tables and messages.
TEST(GgufGoldenTest, NoCaseMakesTheReaderAllocateMoreThanAFewTimesItsSize) {
  for (const Json& test_case : Manifest()["cases"]) {
    const std::string name = test_case["file"].get<std::string>();
    SCOPED_TRACE(name);
    size_t file_bytes = std::filesystem::file_size(CasePath(name));
    for (const std::string& piece : test_case.value("split_files", std::vector<std::string>())) {
      if (piece != name) file_bytes += std::filesystem::file_size(CasePath(piece));
    }
    const std::string path = CasePath(name);
    const size_t before = AllocatedBytes();
    const auto file = GgufFile::Open(path);
    EXPECT_LT(AllocatedBytes() - before, 16 * file_bytes + 16384);
  }
}

}  // namespace
}  // namespace packtrain
