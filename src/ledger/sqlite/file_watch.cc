// SPDX-License-Identifier: Apache-2.0
#include "ledger/sqlite/file_watch.h"

#include <poll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <string_view>
#include <system_error>
#include <thread>

namespace draftflow::sqlite {

FileWatch::FileWatch(const std::filesystem::path& database) {
  std::error_code error;
  const std::filesystem::path file = std::filesystem::canonical(database, error);  // SQLite's log is beside the file itself
  if (error) return;
  name_ = file.filename().string();
  UniqueFd fd(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (fd.get() < 0) return;
  constexpr std::uint32_t kWhat = IN_MODIFY | IN_CREATE | IN_MOVED_TO | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR;
  if (::inotify_add_watch(fd.get(), file.parent_path().c_str(), kWhat) >= 0) fd_ = std::move(fd);
}

bool FileWatch::is_of_database(std::string_view name) const {
  if (!name.starts_with(name_)) return false;
  const std::string_view rest = name.substr(name_.size());
  return rest.empty() || rest == "-wal" || rest == "-journal";
}

bool FileWatch::take() {
  bool written = false;
  alignas(inotify_event) std::array<char, 16384> buffer;
  while (works()) {
    const ssize_t got = ::read(fd_.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    for (ssize_t at = 0; at < got;) {
      inotify_event event;
      std::memcpy(&event, buffer.data() + at, sizeof(event));
      const char* name = buffer.data() + at + sizeof(event);
      at += static_cast<ssize_t>(sizeof(event) + event.len);
      if ((event.mask & (IN_IGNORED | IN_UNMOUNT | IN_DELETE_SELF | IN_MOVE_SELF)) != 0) {
        fd_ = UniqueFd();
        return true;
      }
      written |= (event.mask & IN_Q_OVERFLOW) != 0 || (event.len > 0 && is_of_database(name));
    }
  }
  return written;
}

void FileWatch::sleep(std::chrono::milliseconds most) {
  pollfd ready{.fd = fd_.get(), .events = POLLIN, .revents = 0};
  if (works()) {
    ::poll(&ready, 1, static_cast<int>(most.count()));
  } else {
    std::this_thread::sleep_for(most);
  }
}

}  // namespace draftflow::sqlite
