// SPDX-License-Identifier: Apache-2.0
#include "draftflow/model/tokenizer.h"

#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/text.h"

namespace draftflow {

struct Tokenizer::Impl {
  sentencepiece::SentencePieceProcessor processor;
};

Tokenizer::Tokenizer(const std::filesystem::path& file) : impl_(std::make_unique<Impl>()) {
  const std::string model = read_text_file(file);
  const auto status = impl_->processor.LoadFromSerializedProto(model);
  if (model.empty() || !status.ok()) {
    throw Corrupt(fmt::format("tokenizer {} is not a sentencepiece model: {}", file.string(), status.ToString()));
  }
}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

std::int64_t Tokenizer::vocab_size() const {
  return impl_->processor.GetPieceSize();
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view text) const {
  if (const std::size_t bad = find_invalid_utf8(text); bad != std::string_view::npos) {
    throw InvalidArgument(fmt::format("the text is not UTF-8 at byte {}: '{}'", bad, printable(text, 60)));
  }
  std::vector<int> pieces;
  const auto status = impl_->processor.Encode({text.data(), text.size()}, &pieces);
  if (!status.ok()) throw InvalidArgument(fmt::format("the text cannot be tokenized: {}", status.ToString()));
  if (pieces.empty()) throw InvalidArgument("the text is empty: a prompt needs at least one token");
  std::vector<std::int64_t> ids;
  ids.reserve(pieces.size() + 1);
  if (impl_->processor.bos_id() >= 0) ids.push_back(impl_->processor.bos_id());
  ids.insert(ids.end(), pieces.begin(), pieces.end());
  return ids;
}

std::string Tokenizer::decode(const std::vector<std::int64_t>& ids) const {
  std::vector<int> pieces;
  for (const std::int64_t id : ids) {
    if (id < 0 || id >= vocab_size()) {
      throw InvalidArgument(fmt::format("token id {} is outside the tokenizer's vocabulary of {}", id, vocab_size()));
    }
    pieces.push_back(static_cast<int>(id));
  }
  std::string text;
  const auto status = impl_->processor.Decode(pieces, &text);
  if (!status.ok()) throw InvalidArgument(fmt::format("the tokens cannot be decoded: {}", status.ToString()));
  return text;
}

}  // namespace draftflow
