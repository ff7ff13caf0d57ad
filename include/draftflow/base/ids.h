// SPDX-License-Identifier: Apache-2.0
//
// Ids are types, not strings: a SampleId cannot be passed where a StoreId is meant. An id is opaque UTF-8 of 1 to 1,024
// bytes; it may hold '/', ':', '..', spaces, newlines and emoji. U+0000 and invalid UTF-8 are InvalidArgument.
// Immutable once built; thread-safe as any value.
//
//   SampleId id("run:00000001");
//   std::string text = id.str();
#pragma once

#include <compare>
#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace draftflow {

constexpr std::size_t kMaxIdBytes = 1024;

// Throws InvalidArgument, naming `what`, unless `text` is a valid id.
void check_id(std::string_view what, std::string_view text);

template <class Tag>
class Id {
 public:
  explicit Id(std::string text) : text_(std::move(text)) { check_id(Tag::kName, text_); }
  const std::string& str() const { return text_; }
  auto operator<=>(const Id&) const = default;

 private:
  std::string text_;
};

struct SampleIdTag {
  static constexpr const char* kName = "sample id";
};
struct StoreIdTag {
  static constexpr const char* kName = "store id";
};
struct TaskIdTag {
  static constexpr const char* kName = "task id";
};
struct RunIdTag {
  static constexpr const char* kName = "run id";
};
struct GroupIdTag {
  static constexpr const char* kName = "group id";
};
struct HolderIdTag {
  static constexpr const char* kName = "holder id";
};

using SampleId = Id<SampleIdTag>;
using StoreId = Id<StoreIdTag>;
using TaskId = Id<TaskIdTag>;
using RunId = Id<RunIdTag>;
using GroupId = Id<GroupIdTag>;
using HolderId = Id<HolderIdTag>;  // one attach of one process; random, never a pid

}  // namespace draftflow

template <class Tag>
struct std::hash<draftflow::Id<Tag>> {
  std::size_t operator()(const draftflow::Id<Tag>& id) const noexcept { return std::hash<std::string>()(id.str()); }
};
