// SPDX-License-Identifier: Apache-2.0
//
// How long a mount of NFS may go on saying what was: its attribute-cache time, from the kernel's list of mounts. Private to
// cli.
//
//   std::ifstream mounts("/proc/self/mountinfo");
//   const auto cache = find_attribute_cache(mounts, "0:53");
#pragma once

#include <cstdint>
#include <istream>
#include <optional>
#include <string>

namespace draftflow::cli {

struct AttributeCache {
  std::string type;  // "nfs", "nfs4"
  std::int64_t ms = 0;
};

// Of the mount of a device ("major:minor"), as /proc/self/mountinfo lists it; nothing if it is not there or not NFS. The
// greatest time, of files or folders: 60 s unless the mount says otherwise, 0 with noac.
std::optional<AttributeCache> find_attribute_cache(std::istream& mountinfo, const std::string& device);

}  // namespace draftflow::cli
