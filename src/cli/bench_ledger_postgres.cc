// SPDX-License-Identifier: Apache-2.0
//
// The row of draftflow bench ledger on a PostgreSQL server, which it starts itself: leases and acks of some clients at once,
// beside pgbench, which makes the same statements on copies of the tables.
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <exception>
#include <memory>
#include <optional>
#include <ostream>
#include <stdexcept>
#include <thread>

#include "cli/bench_ledger.h"
#include "cli/stop.h"
#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "ledger/postgres/private_server.h"

namespace draftflow::cli {
namespace {

using postgres::PrivateServer;

constexpr const char* kRow = "postgres_lease_ack_256_4";
constexpr const char* kMine = "ledger";
constexpr const char* kCopy = "raw";

std::string in_schema(const char* schema) {
  return fmt::format("&options=-csearch_path%3D{}", schema);
}

std::filesystem::path find_pgbench(const PrivateServer& server) {
  if (::access((server.programs() / "pgbench").c_str(), X_OK) == 0) return server.programs() / "pgbench";
  return std::system("command -v pgbench > /dev/null 2>&1") == 0 ? "pgbench" : "";
}

// One lease of 256 and its ack, as SqlLedger makes them: what it asks, locks, changes and adds. Lists are arrays, since pgbench
// has no variables of many values.
constexpr const char* kScript = R"sql(
SELECT id, open, available, leased, acked, failed FROM consumer WHERE name = 'queue';
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now \gset
SELECT 1 FROM queue_ref WHERE consumer = 1 AND state = 1 AND expires_ms <= :now LIMIT 1;
BEGIN;
SELECT pg_advisory_xact_lock_shared(1);
SELECT id, open, available, leased, acked, failed FROM consumer WHERE name = 'queue';
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now \gset
SELECT array_agg(row)::text AS rows FROM
  (SELECT q.row, q.attempts, 0 FROM queue_ref q WHERE q.consumer = 1 AND q.state = 0
   ORDER BY q.row LIMIT {batch} FOR UPDATE OF q SKIP LOCKED) AS picked \gset
UPDATE queue_ref SET state = 1, holder = 'consumer', token = '0123456789abcdef0123456789abcdef',
  expires_ms = :now::bigint + 60000 WHERE consumer = 1 AND row = ANY(:rows::bigint[]);
UPDATE consumer SET available = available - {batch}, leased = leased + {batch} WHERE id = 1;
COMMIT;
SELECT r.row, s.sample_id, s.generation, s.bytes, s.tokens, r.template, r.packed FROM sample_ref r JOIN sample s ON s.row = r.row
  WHERE r.row = ANY(:rows::bigint[]);
BEGIN;
SELECT pg_advisory_xact_lock_shared(1);
SELECT id, open, available, leased, acked, failed FROM consumer WHERE name = 'queue';
SELECT row, sample_id FROM sample WHERE sample_id IN (SELECT 'run:' || lpad((unnest(:rows::bigint[]) + :first)::text, 8, '0'));
SELECT q.row, q.state, q.attempts, q.token, q.ended_token FROM queue_ref q
  WHERE q.consumer = 1 AND q.row = ANY(:rows::bigint[]) ORDER BY q.row FOR UPDATE OF q;
UPDATE queue_ref SET state = 2, ended_token = token, token = NULL, holder = NULL, expires_ms = NULL, reason = NULL
  WHERE consumer = 1 AND row = ANY(:rows::bigint[]);
SELECT 1 FROM consumer WHERE open = 1 AND kind = 1 AND id <> 1 LIMIT 1;
UPDATE sample SET claims = claims - 1, state = CASE WHEN claims = 1 AND in_place = 0 THEN 1 ELSE state END
  WHERE state = 0 AND row = ANY(:rows::bigint[]);
UPDATE consumer SET leased = leased - {batch}, acked = acked + {batch} WHERE id = 1;
COMMIT;
)sql";

class Pgbench {
 public:
  Pgbench(const std::filesystem::path& program, const PrivateServer& server, const std::filesystem::path& script_file)
      : program_(program), server_(server), script_(script_file), output_(script_file.string() + ".out") {
    replace_file(script_, fmt::format(kScript, fmt::arg("batch", kBatch)));
  }

  // The seconds that so many clients take for so many transactions each, connecting not counted.
  double measure(int clients, int transactions, std::int64_t first) const {
    const std::string command = fmt::format(
        "PGOPTIONS='-csearch_path={}' '{}' -n -M prepared -D first={} -c {} -j {} -t {} -f '{}' -h '{}' -p 5432 -U postgres "
        "postgres > "
        "'{}' 2>&1",
        kCopy, program_.string(), first, clients, clients, transactions, script_.string(), server_.folder().string(),
        output_.string());
    const int status = std::system(command.c_str());
    const std::string said = read_text_file(output_);
    const std::size_t at = said.find("\ntps = ");
    const bool interrupted = WIFSIGNALED(status) ? WTERMSIG(status) == SIGINT : WEXITSTATUS(status) == kInterruptedExitCode;
    if (interrupted) throw BenchStopped();  // system() kept the signal from us
    if (status != 0 || at == std::string::npos) throw Unavailable("pgbench has failed: " + said);
    return clients * transactions / std::strtod(said.c_str() + at + 7, nullptr);
  }

 private:
  const std::filesystem::path program_;
  const PrivateServer& server_;
  const std::filesystem::path script_, output_;
};

// All at once, each client with a connection of its own.
double seconds_of_clients(std::vector<std::unique_ptr<Ledger>>& clients, int batches) {
  std::vector<std::exception_ptr> errors(clients.size());
  const double seconds = seconds_of([&] {
    std::vector<std::thread> threads;
    for (std::size_t client = 0; client < clients.size(); ++client) {
      threads.emplace_back([&, client] {
        try {
          for (int i = 0; i < batches; ++i) {
            const QueueAnswer answer = clients[client]->lease_refs({.group = bench_queue(), .max_refs = kBatch});
            if (answer.leases.size() != kBatch) throw std::logic_error("bench: the queue is empty");
            clients[client]->ack_refs(bench_queue(), answer.leases);
          }
        } catch (...) {
          errors[client] = std::current_exception();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  return seconds;
}

// As root the server runs as another user, who may be kept out of the bench's folder.
PrivateServer::Setup setup_of(const LedgerBench& bench) {
  return {.data = ::geteuid() == 0 ? "" : bench.file("postgres"),
          .settings = {"shared_buffers=512MB", "max_wal_size=4GB", "checkpoint_timeout=30min"}};
}

void copy_tables(PrivateServer& server) {
  server.ask(fmt::format("CREATE SCHEMA {}", kCopy));
  for (const char* const table : {"consumer", "sample", "sample_ref", "queue_ref"}) {
    server.ask(fmt::format("CREATE TABLE {0}.{2} (LIKE {1}.{2} INCLUDING ALL)", kCopy, kMine, table));
    server.ask(fmt::format("INSERT INTO {0}.{2} SELECT * FROM {1}.{2}", kCopy, kMine, table));
  }
  server.ask("VACUUM ANALYZE");
  server.ask("CHECKPOINT");
}

}  // namespace

std::vector<BenchRow> postgres_ledger_rows(LedgerBench& bench) {
  if (!bench.wants(kRow)) return {};
  const LedgerSizes& sizes = bench.sizes();
  std::optional<PrivateServer> started;
  std::string why_not;
  try {
    started.emplace(setup_of(bench));
    why_not = started->why_not().value_or("");
  } catch (const Unavailable& error) {  // the other rows took long: they are to be shown
    why_not = error.what();
  }
  const std::filesystem::path pgbench = why_not.empty() ? find_pgbench(*started) : "";
  if (why_not.empty() && pgbench.empty()) why_not = "pgbench is not installed";
  if (!why_not.empty()) {
    bench.progress() << kRow << " is left out: " << why_not << std::endl;
    return {};
  }
  PrivateServer& server = *started;
  server.ask(fmt::format("CREATE SCHEMA {}", kMine));
  std::vector<std::unique_ptr<Ledger>> clients;
  for (int i = 0; i < sizes.clients; ++i) clients.push_back(open_postgres_ledger(server.url(in_schema(kMine))));
  clients[0]->declare_group({.group = bench_queue(), .kind = GroupKind::kQueue});
  const int amount = sizes.clients * sizes.client_batches * kBatch;
  std::int64_t first = -1;  // the number in the id of row 0
  bench.fill(std::int64_t{amount} * (sizes.client_repetitions + 1), false, [&](const std::vector<SampleRef>& batch) {
    if (first < 0) first = std::stoll(batch.front().sample_id.str().substr(4));  // "run:00000000"
    clients[0]->commit_samples(batch, {});
  });
  copy_tables(server);
  const Pgbench raw(pgbench, server, bench.file("pgbench.sql"));
  const auto medians = alternate(
      sizes.client_repetitions, [&] { return std::vector{seconds_of_clients(clients, sizes.client_batches)}; },
      [&] { return std::vector{raw.measure(sizes.clients, sizes.client_batches, first)}; });
  if (std::stoll(server.ask("SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'")) != 0) {
    throw std::logic_error("bench: the clients have met deadlocks");
  }
  BenchRow row = rate_row(kRow, amount, "ref/s", medians[0], value_at_least(40'000));
  row.note = fmt::format("{} clients, {} refs a call, also >= 0.6 of the limit; the limit is pgbench, data in {}",
                         sizes.clients, kBatch, server.data().parent_path().string());
  return {row};
}

}  // namespace draftflow::cli
