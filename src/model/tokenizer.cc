// SPDX-License-Identifier: Apache-2.0
#include "draftflow/model/tokenizer.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/text.h"
#include "model/sentencepiece_shim.h"

namespace draftflow {
namespace {

namespace shim = sentencepiece_shim;

// The library stands beside the one that holds this code, or in ../lib beside a program that does.
std::filesystem::path own_folder() {
  Dl_info info{};
  if (::dladdr(reinterpret_cast<void*>(&own_folder), &info) == 0 || info.dli_fname == nullptr) return ".";
  std::error_code ignored;
  const auto file = std::filesystem::canonical(info.dli_fname, ignored);
  // For code in the program itself dli_fname is argv[0], which may lead nowhere.
  return (ignored ? std::filesystem::read_symlink("/proc/self/exe") : file).parent_path();
}

const shim::Functions& functions() {
  static const shim::Functions* const loaded = [] {
    std::string tried;
    for (const auto& folder : {own_folder(), own_folder() / "../lib"}) {
      const std::string path = (folder / shim::kLibrary).lexically_normal().string();
      if (void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND)) {
        return reinterpret_cast<shim::Entry>(::dlsym(library, shim::kEntry))();
      }
      tried += fmt::format("{}{}", tried.empty() ? "" : "; ", ::dlerror());
    }
    throw Unavailable(fmt::format("{} cannot be opened ({}): build or install it beside draftflow", shim::kLibrary, tried));
  }();
  return *loaded;
}

void receive_text(void* context, const void* data, std::size_t count) {
  static_cast<std::string*>(context)->assign(static_cast<const char*>(data), count);
}

void receive_ids(void* context, const void* data, std::size_t count) {
  const int* ids = static_cast<const int*>(data);
  auto& list = *static_cast<std::vector<std::int64_t>*>(context);
  list.insert(list.end(), ids, ids + count);
}

}  // namespace

struct Tokenizer::Impl {
  void* handle = nullptr;
  ~Impl() {
    if (handle != nullptr) functions().close(handle);
  }
};

Tokenizer::Tokenizer(const std::filesystem::path& file) : impl_(std::make_unique<Impl>()) {
  const std::string model = read_text_file(file);
  std::string reason = "the file is empty";
  if (!model.empty()) impl_->handle = functions().open(model.data(), model.size(), receive_text, &reason);
  if (impl_->handle == nullptr) {
    throw Corrupt(fmt::format("tokenizer {} is not a sentencepiece model: {}", file.string(), reason));
  }
}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

std::int64_t Tokenizer::vocab_size() const {
  return functions().size(impl_->handle);
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view text) const {
  if (const std::size_t bad = find_invalid_utf8(text); bad != std::string_view::npos) {
    throw InvalidArgument(fmt::format("the text is not UTF-8 at byte {}: '{}'", bad, printable(text, 60)));
  }
  std::vector<std::int64_t> ids;
  if (const int bos = functions().bos(impl_->handle); bos >= 0) ids.push_back(bos);
  const std::size_t front = ids.size();
  if (!functions().encode(impl_->handle, text.data(), text.size(), receive_ids, &ids)) {
    throw InvalidArgument("the text cannot be tokenized");
  }
  if (ids.size() == front) throw InvalidArgument("the text is empty: a prompt needs at least one token");
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
  if (!functions().decode(impl_->handle, pieces.data(), pieces.size(), receive_text, &text)) {
    throw InvalidArgument("the tokens cannot be decoded");
  }
  return text;
}

}  // namespace draftflow
