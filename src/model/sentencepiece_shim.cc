// SPDX-License-Identifier: Apache-2.0
#include "model/sentencepiece_shim.h"

#include <sentencepiece_processor.h>

#include <memory>
#include <string>
#include <vector>

namespace {

using Processor = sentencepiece::SentencePieceProcessor;
using draftflow::sentencepiece_shim::Functions;
using draftflow::sentencepiece_shim::Receive;

Processor& processor(void* tokenizer) {
  return *static_cast<Processor*>(tokenizer);
}

void* open(const char* model, std::size_t bytes, Receive error, void* context) {
  auto made = std::make_unique<Processor>();
  const auto status = made->LoadFromSerializedProto({model, bytes});
  if (status.ok()) return made.release();
  const std::string text = status.ToString();
  error(context, text.data(), text.size());
  return nullptr;
}

void close(void* tokenizer) {
  delete &processor(tokenizer);
}
int size(void* tokenizer) {
  return processor(tokenizer).GetPieceSize();
}
int bos(void* tokenizer) {
  return processor(tokenizer).bos_id();
}

bool encode(void* tokenizer, const char* text, std::size_t bytes, Receive ids, void* context) {
  std::vector<int> pieces;
  if (!processor(tokenizer).Encode({text, bytes}, &pieces).ok()) return false;
  ids(context, pieces.data(), pieces.size());
  return true;
}

bool decode(void* tokenizer, const int* ids, std::size_t count, Receive text, void* context) {
  std::string decoded;
  if (!processor(tokenizer).Decode(std::vector<int>(ids, ids + count), &decoded).ok()) return false;
  text(context, decoded.data(), decoded.size());
  return true;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const Functions* draftflow_sentencepiece() {
  static constexpr Functions kFunctions{open, close, size, bos, encode, decode};
  return &kFunctions;
}
