#pragma once

// What the fuzzers and their short deterministic runs feed. A target returns "" if all it checks
// held, else what broke; crashes and sanitizer reports speak for themselves.

#include <cstddef>
#include <span>
#include <string>

namespace packtrain {

// The bytes as a GGUF file: what is accepted must lie inside them.
std::string FuzzGguf(std::span<const std::byte> bytes);

// The bytes as text, through a small tokenizer of every pre-tokenizer family: the text comes back,
// control tokens only when asked for, and a stream shows nothing but UTF-8.
std::string FuzzTokenizerText(std::span<const std::byte> bytes);

// The bytes as a GGUF file with a tokenizer in it.
std::string FuzzTokenizerFile(std::span<const std::byte> bytes);

// The bytes as a YAML topology.
std::string FuzzTopology(std::span<const std::byte> bytes);

// The bytes as a YAML rig.
std::string FuzzRig(std::span<const std::byte> bytes);

// The bytes as the facts of a host in JSON: what is accepted is written and read back the same.
std::string FuzzHostFacts(std::span<const std::byte> bytes);

// The bytes as a message from the coordinator with a step in it.
std::string FuzzStep(std::span<const std::byte> bytes);

// The bytes as frames of tensors from another worker.
std::string FuzzFrames(std::span<const std::byte> bytes);

}  // namespace packtrain
