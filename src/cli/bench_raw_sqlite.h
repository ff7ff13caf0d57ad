// SPDX-License-Identifier: Apache-2.0
//
// The ledger's engine alone, with the ledger's settings: the same rows as the ledger writes and reads, in tables of its own, by
// as few statements as they can be. What it reaches is the limit in `draftflow bench ledger`. Used by one thread.
//
//   RawSqlite raw("/tmp/x.raw");
//   raw.commit(RawSqlite::rows_of(refs));
#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "draftflow/records/sample_ref.h"

namespace draftflow::cli {

class RawSqlite {
 public:
  explicit RawSqlite(const std::filesystem::path& file);  // made if it is not there

  using Rows = std::vector<std::pair<std::string, std::string>>;  // id, what the ledger keeps of such a ref: its source
  static Rows rows_of(const std::vector<SampleRef>& refs);

  void commit(const Rows& rows);
  std::size_t read_share(std::int64_t first, std::int64_t end, int width, int rank);  // bytes
  void scan();

  // A queue, of rows that were committed.
  void enqueue(std::int64_t count, bool finished);
  struct Span {
    std::int64_t first = 0, last = -1;
  };
  Span lease(std::int64_t count);  // the first available rows, which lie together; and reads them
  void ack(const Span& rows);

 private:
  struct Close {
    void operator()(sqlite3* handle) const { sqlite3_close_v2(handle); }
  };
  struct Finalize {
    void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
  };
  using Prepared = std::unique_ptr<sqlite3_stmt, Finalize>;

  void check(int code);
  void run(const char* sql);
  Prepared prepare(const char* sql);
  void bind(const Prepared& statement, std::initializer_list<std::int64_t> values);
  void step(const Prepared& statement);

  std::unique_ptr<sqlite3, Close> handle_;
  Prepared insert_, insert_ref_, select_, enqueue_, claim_, pick_, lease_, read_, ack_, end_claims_;
};

}  // namespace draftflow::cli
