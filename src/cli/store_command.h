// SPDX-License-Identifier: Apache-2.0
//
// draftflow store: what its subcommands have in common. A store is named by its folder, {root}/{store id}. Reading only, but
// for put, create and gc; every function may be called from any process while others use the store.
//
//   const OpenedStore opened = open_store({"out/run/store"});
//   const SampleRef ref = find_sample(opened, "run:7", std::nullopt);
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "cli/app.h"
#include "draftflow/store/feature_store.h"

namespace CLI {
class App;
}

namespace draftflow::cli {

struct StoreName {
  std::filesystem::path root;
  StoreId id;
};
StoreName store_name(const std::filesystem::path& folder);  // InvalidArgument if the folder's name cannot be an id

// What all subcommands begin with. The secret of a store that has one: from `secret_file` or, where that is empty, from the
// environment (DRAFTFLOW_STORE_SECRET), which is wiped.
struct StorePath {
  std::filesystem::path path;
  std::filesystem::path secret_file;
};
std::shared_ptr<const Secret> take_secret(const std::filesystem::path& secret_file);  // nullptr for none

struct OpenedStore {
  std::filesystem::path path;  // as it was given
  StoreId id;
  std::unique_ptr<FeatureStore> store;
};
OpenedStore open_store(const StorePath& store);  // the message of a failure says how to go on

// The ref of a sample, the current generation by default. NotFound says which generation there is, or how to list.
SampleRef find_sample(const OpenedStore& opened, const std::string& id, std::optional<std::uint64_t> generation);

// What reading all of one generation finds.
struct SampleCheck {
  enum class State { kGood, kFreed, kDamaged } state = State::kGood;
  std::string why;  // of kDamaged
};
SampleCheck check_sample(FeatureStore& store, const ResidentSample& sample);

// "damaged PATH: why", the path only once.
std::string damage_text(const std::filesystem::path& path, const std::string& why);

// The id whole, on one line, as it may stand in a terminal.
std::string printable_id(const SampleId& id);

// One line, ASCII alone: U+0085 and U+2028 end a line for some readers.
std::string json_line(const nlohmann::ordered_json& value);

const char* kind_text(StoreKind kind);  // as --kind takes it

// The store's folder, and --secret-file.
void add_store_path(CLI::App& app, StorePath& store);
void add_secret_file(CLI::App& app, std::filesystem::path& secret_file);

void add_store_put_command(CLI::App& group, CommandLine& line);  // and get
void add_store_list_command(CLI::App& group, CommandLine& line);
void add_store_inspect_command(CLI::App& group, CommandLine& line);
void add_store_verify_command(CLI::App& group, CommandLine& line);

}  // namespace draftflow::cli
