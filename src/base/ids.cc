// SPDX-License-Identifier: Apache-2.0
#include "draftflow/base/ids.h"

#include <fmt/format.h>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow {

void check_id(std::string_view what, std::string_view text) {
  if (text.empty()) throw InvalidArgument(fmt::format("{} is empty: 1 to {} bytes of UTF-8 are allowed", what, kMaxIdBytes));
  if (text.size() > kMaxIdBytes) {
    throw InvalidArgument(
        fmt::format("{} '{}' has {} bytes: at most {} are allowed", what, printable(text, 60), text.size(), kMaxIdBytes));
  }
  if (text.find('\0') != std::string_view::npos) {
    throw InvalidArgument(fmt::format("{} '{}' holds U+0000, which is not allowed", what, printable(text, 60)));
  }
  if (const std::size_t bad = find_invalid_utf8(text); bad != std::string_view::npos) {
    throw InvalidArgument(fmt::format("{} '{}' is not UTF-8 at byte {}", what, printable(text, 60), bad));
  }
}

}  // namespace draftflow
