// SPDX-License-Identifier: Apache-2.0
//
// That the interposer of the fault tests knows every call of the store's libraries. Part of the program of fault_test.cc.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "store/testing_faults.h"

namespace draftflow::store {
namespace {

using namespace store_testing;

// Hashes and ciphers, which open no file of the store.
bool is_of_a_library(const std::string& name) {
  constexpr std::string_view kPrefixes[] = {"EVP_", "ERR_", "XXH3_", "crypto_", "sodium_", "randombytes_"};
  return std::any_of(std::begin(kPrefixes), std::end(kPrefixes),
                     [&](std::string_view prefix) { return name.starts_with(prefix); });
}

// Else a call that the store learns to make would pass the faults by.
TEST(Faults, EveryFileCallOfTheStoreHasAWrapper) {
  constexpr std::array kHarmless = {"cos",
                                    "getrandom",
                                    "llround",
                                    "localeconv",
                                    "log",
                                    "memchr",
                                    "memcmp",
                                    "memcpy",
                                    "memmove",
                                    "memset",
                                    "pthread_atfork",
                                    "sqrt",
                                    "strcmp",
                                    "pthread_mutex_lock",
                                    "snprintf",
                                    "strlen",
                                    "strtod",
                                    "pthread_mutex_unlock",
                                    "strtoll",
                                    "SHA256",
                                    "XXH3_64bits",
                                    "strtoull",
                                    "clock_gettime",
                                    "getpid",
                                    "gethostname",
                                    "strerror",
                                    "abort",
                                    "munmap",
                                    "getuid",
                                    "sched_getcpu",
                                    "bcmp",
                                    "geteuid",
                                    "malloc",
                                    "free",
                                    "pthread_once",
                                    "time",
                                    "getenv",
                                    "unsetenv",
                                    "sysconf",
                                    "nanosleep",
                                    "lseek",
                                    "pthread_cond_clockwait",
                                    "XXH3_64bits_digest",
                                    "XXH3_64bits_dispatch",
                                    "XXH3_64bits_reset",
                                    "XXH3_64bits_update",
                                    "XXH3_64bits_update_dispatch"};
  const std::vector<std::string> wrapped = wrapped_calls();
  FILE* nm = ::popen("nm -u " DRAFTFLOW_STORE_LIBRARIES " 2>/dev/null", "r");
  ASSERT_NE(nm, nullptr);
  std::string output;
  char buffer[4096];
  for (std::size_t got = 0; (got = ::fread(buffer, 1, sizeof buffer, nm)) > 0;) output.append(buffer, got);
  if (::pclose(nm) != 0) GTEST_SKIP() << "nm cannot read the store's libraries";
  std::istringstream words(output);
  std::size_t seen = 0;
  for (std::string word; words >> word;) {
    if (word.starts_with("_") || word.ends_with(":") || word.size() == 1) continue;
    ++seen;
    const bool known = std::binary_search(wrapped.begin(), wrapped.end(), word) ||
                       std::find(kHarmless.begin(), kHarmless.end(), word) != kHarmless.end() || is_of_a_library(word);
    EXPECT_TRUE(known) << word << " is called by the store: wrap it in testing_faults.cc, or call it harmless here";
  }
  EXPECT_GT(seen, 20u);
}

}  // namespace
}  // namespace draftflow::store
