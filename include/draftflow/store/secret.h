// SPDX-License-Identifier: Apache-2.0
//
// Secret: what opens a store that was made with one (docs/formats/access.md). Owns its bytes, wipes them at the end, and
// cannot be printed; no message holds any of them. from_environment changes the environment: call it before there are
// threads.
//
//   SharedDirOptions options;
//   options.secret = std::make_shared<Secret>(Secret::from_file("store.secret"));
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <ostream>
#include <span>
#include <string_view>

namespace draftflow {

constexpr const char* kSecretVariable = "DRAFTFLOW_STORE_SECRET";
constexpr std::size_t kMaxSecretBytes = 64 << 10;

class Secret {
 public:
  // The file's bytes without one newline at the end. PermissionDenied for a file that others may read or write;
  // InvalidArgument for one that is empty, over kMaxSecretBytes or not a regular file.
  static Secret from_file(const std::filesystem::path& path);

  // The variable's value without one newline at the end; nothing if it is not set; InvalidArgument as above. kTake then
  // overwrites and unsets the variable, so that neither /proc/PID/environ nor a child shows it: present the one Secret
  // wherever it is needed. kKeep is for a supervisor whose children read it themselves.
  enum class Afterwards { kTake, kKeep };
  static std::optional<Secret> from_environment(const char* name, Afterwards afterwards = Afterwards::kTake);

  static Secret from_bytes(std::string_view bytes);  // the caller wipes its own copy

  std::span<const std::byte> bytes() const { return {memory_.get(), size_}; }

 private:
  // sodium_malloc: guard pages, locked where allowed, left out of core dumps, wiped when freed.
  struct Free {
    void operator()(std::byte* memory) const;
  };
  explicit Secret(std::span<const std::byte> bytes);
  std::unique_ptr<std::byte[], Free> memory_;
  std::size_t size_ = 0;
};

// For options that hold both: the file's where one is named, else the other, which may be none.
std::shared_ptr<const Secret> find_secret(const std::filesystem::path& file, std::shared_ptr<const Secret> other);

std::ostream& operator<<(std::ostream&, const Secret&) = delete;

}  // namespace draftflow
