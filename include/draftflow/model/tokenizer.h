// SPDX-License-Identifier: Apache-2.0
//
// A sentencepiece tokenizer, as Llama folders carry it (tokenizer.model). Constant after construction; thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace draftflow {

class Tokenizer {
 public:
  // NotFound for a missing file, Corrupt for one that is no sentencepiece model.
  explicit Tokenizer(const std::filesystem::path& file);
  Tokenizer(Tokenizer&&) noexcept;
  ~Tokenizer();

  std::int64_t vocab_size() const;
  // Token ids with BOS in front. InvalidArgument for text that is empty or not UTF-8.
  std::vector<std::int64_t> encode(std::string_view text) const;
  std::string decode(const std::vector<std::int64_t>& ids) const;  // BOS and EOS show as nothing

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace draftflow
