// SPDX-License-Identifier: Apache-2.0
//
// A shared directory made with a secret: who gets in, and what somebody who can write to the folder cannot do unseen. And
// stores with a codec: what the file, the ref and the reader say of it.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "draftflow/formats/safetensors.h"
#include "store/shared_dir/policies.h"
#include "store/shared_dir/shared_dir_store.h"
#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

using store_testing::expect_same;
using store_testing::generation_files;
using store_testing::message_of;
using store_testing::random_tensor;
using store_testing::run_metadata;
using store_testing::sample_tensors;
using store_testing::small_tensors;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kSecret = "a secret of the tests";

std::shared_ptr<const Secret> secret_of(std::string_view text) {
  return std::make_shared<Secret>(Secret::from_bytes(text));
}

class SealedStore : public ::testing::Test {
 protected:
  std::unique_ptr<FeatureStore> create(std::string_view secret = kSecret, bool encrypt = false, const std::string& id = "st") {
    return create_shared_dir_store(temp_.path(), StoreId(id), {.secret = secret_of(secret), .encrypt = encrypt});
  }
  std::unique_ptr<FeatureStore> open(std::shared_ptr<const Secret> secret) {
    return open_shared_dir_store(temp_.path(), StoreId("st"), {.secret = std::move(secret)});
  }
  std::filesystem::path root(const std::string& id = "st") const { return temp_.path() / id; }
  std::filesystem::path only_file(const std::string& id = "st") const {
    const auto files = generation_files(root(id));
    EXPECT_EQ(files.size(), 1u);
    return files.at(0);
  }
  static SampleRef put(FeatureStore& store, const std::string& id = "a", std::uint64_t seed = 1) {
    return store.put(small_tensors(seed), SampleId(id), run_metadata());
  }
  void overwrite(const std::filesystem::path& path, std::string_view text) {
    const UniqueFd fd = open_file(path, O_WRONLY | O_TRUNC);
    write_all(fd.get(), std::as_bytes(std::span(text)), path);
  }
  void edit_store_file(const std::function<void(nlohmann::ordered_json&)>& edit) {
    auto value = nlohmann::ordered_json::parse(read_text_file(root() / "store.json"));
    edit(value);
    overwrite(root() / "store.json", value.dump());
  }

  testing_support::TempFolder temp_;
};

TEST_F(SealedStore, OpensWithItsSecretAlone) {
  const SampleRef ref = put(*create());
  EXPECT_THAT(message_of<PermissionDenied>([&] { open(nullptr); }),
              AllOf(HasSubstr("store 'st'"), HasSubstr("none was presented"), HasSubstr("DRAFTFLOW_STORE_SECRET")));
  EXPECT_THAT(message_of<PermissionDenied>([&] { open(secret_of("a wrong one")); }),
              AllOf(HasSubstr("store 'st'"), Not(HasSubstr("a wrong one")), Not(HasSubstr(kSecret))));
  EXPECT_THROW(create("a wrong one"), PermissionDenied);
  EXPECT_THROW(create_shared_dir_store(temp_.path(), StoreId("st"), {}), PermissionDenied);
  EXPECT_THROW(open_shared_dir_store(temp_.path(), StoreId("st"), {.secret = secret_of("")}), InvalidArgument);
  expect_same(open(secret_of(kSecret))->read(ref), small_tensors());
  expect_same(create()->read(ref), small_tensors());
}

TEST_F(SealedStore, KeepsTheSecretNowhere) {
  put(*create());
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root())) {
    if (!entry.is_regular_file()) continue;
    EXPECT_THAT(read_text_file(entry.path()), Not(HasSubstr(kSecret))) << entry.path();
  }
}

TEST_F(SealedStore, ASecretForAStoreWithoutOneIsRefused) {
  create_shared_dir_store(temp_.path(), StoreId("st"), {});
  EXPECT_THAT(message_of<InvalidArgument>([&] { open(secret_of(kSecret)); }), HasSubstr("has no access policy"));
  EXPECT_THROW(create(), InvalidArgument);
}

TEST_F(SealedStore, EncryptionIsTheStoresOwnChoice) {
  EXPECT_THAT(message_of<InvalidArgument>([&] { create_shared_dir_store(temp_.path(), StoreId("none"), {.encrypt = true}); }),
              HasSubstr("only with a secret"));
  create();
  EXPECT_THAT(message_of<InvalidArgument>([&] { create(kSecret, true); }), HasSubstr("made without encryption"));
  create(kSecret, true, "closed");
  EXPECT_THAT(message_of<InvalidArgument>([&] { create(kSecret, false, "closed"); }), HasSubstr("made with encryption"));
  EXPECT_NO_THROW(open_shared_dir_store(temp_.path(), StoreId("closed"), {.secret = secret_of(kSecret)}));
}

TEST_F(SealedStore, EncryptionHidesTheBytesAndAuthenticationDoesNot) {
  const TensorMap tensors = sample_tensors();
  create()->put(tensors, SampleId("a"), run_metadata());
  create(kSecret, true, "closed")->put(tensors, SampleId("a"), run_metadata());
  const auto& large = find_tensor(tensors, "large")->bytes;
  const std::string piece(reinterpret_cast<const char*>(large.data()) + 1000, 64);
  EXPECT_NE(read_text_file(only_file()).find(piece), std::string::npos);
  EXPECT_EQ(read_text_file(only_file("closed")).find(piece), std::string::npos);
}

TEST_F(SealedStore, EveryAlteredByteIsFoundWhateverIsVerified) {
  for (const bool encrypt : {false, true}) {
    const std::string id = encrypt ? "closed" : "st";
    const auto store = create(kSecret, encrypt, id);
    const SampleRef ref = put(*store);
    const std::string good = read_text_file(only_file(id));
    for (std::size_t at = 0; at < good.size(); ++at) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 1);
      overwrite(only_file(id), bad);
      EXPECT_THROW(store->read(ref), Corrupt) << at;
      EXPECT_THROW(store->get(ref, {.verify = false}), Corrupt) << at;
      if (!encrypt) {
        EXPECT_THROW(store->get(ref, {.zero_copy = true, .verify = false}), Corrupt) << at;
      }
    }
    overwrite(only_file(id), good);
    expect_same(store->read(ref), small_tensors());
    EXPECT_EQ(store->health().live_leases, 0u);
  }
}

// With the checksums made right again, which needs no secret.
TEST_F(SealedStore, ForgedFilesAreFound) {
  const auto store = create();
  const SampleRef ref = put(*store);
  const auto forge = [&](const TensorMap& tensors) {
    std::filesystem::remove(only_file());
    const auto path = root() / "samples" / "forged";
    const UniqueFd fd = open_file(path, O_CREAT | O_RDWR);
    write_generation(fd.get(), path, {"st", ref.incarnation, "a", ref.generation}, pack(Codec::kRaw, tensors));
    return path;
  };
  const auto target = only_file();
  std::filesystem::rename(forge(small_tensors(9)), target);
  EXPECT_THAT(message_of<Corrupt>([&] { store->read(ref); }), HasSubstr("is not sealed"));
}

TEST_F(SealedStore, AFileMovedToAnotherNameIsFound) {
  const auto store = create();
  const SampleRef a = put(*store, "a", 1), b = put(*store, "b", 2);
  auto files = generation_files(root());
  ASSERT_EQ(files.size(), 2u);
  const std::string one = read_text_file(files[0]), other = read_text_file(files[1]);
  overwrite(files[0], other);
  overwrite(files[1], one);
  EXPECT_THAT(message_of<Corrupt>([&] { store->read(a); }), HasSubstr("header's tag differs"));
  EXPECT_THROW(store->read(b), Corrupt);
}

TEST_F(SealedStore, AFileOfAnotherStoreWithTheSameSecretIsFound) {
  const auto store = create();
  const SampleRef ref = put(*store);
  const auto other = create(kSecret, false, "other");
  put(*other);
  overwrite(only_file(), read_text_file(only_file("other")));
  EXPECT_THROW(store->read(ref), Corrupt);
}

TEST_F(SealedStore, APolicyTakenAwayDoesNotOpenTheDoor) {
  put(*create());
  const auto attach = [&] { return open(nullptr); };
  const std::string store_file = read_text_file(root() / "store.json");
  // From store.json alone, from the folder alone, from both.
  edit_store_file([](auto& value) { value["required"] = nlohmann::ordered_json::array(); });
  EXPECT_THAT(message_of<Corrupt>(attach), HasSubstr("the folder 'access' holds its policy"));
  overwrite(root() / "store.json", store_file);
  std::filesystem::rename(root() / "access", temp_.path() / "taken");
  EXPECT_THAT(message_of<Corrupt>(attach), HasSubstr("holds no policy"));
  EXPECT_THROW(open(secret_of(kSecret)), Corrupt);
  edit_store_file([](auto& value) { value["required"] = nlohmann::ordered_json::array(); });
  EXPECT_THAT(message_of<Corrupt>(attach), HasSubstr("somebody took it away"));
  EXPECT_THROW(create_shared_dir_store(temp_.path(), StoreId("st"), {}), Corrupt);
}

TEST_F(SealedStore, WhatIsPlantedAmongTheSamplesKeepsNobodyOut) {
  const auto store = create_shared_dir_store(temp_.path(), StoreId("st"), {});
  const SampleRef ref = put(*store);
  const auto file = only_file();
  std::filesystem::create_symlink("/etc/passwd", file.parent_path() / "a.g9007199254740991.safetensors");
  const SamplePlace place = sample_place(SampleId("b"));
  std::filesystem::create_directories(root() / "samples" / place.fan_out);
  std::filesystem::create_symlink("/etc", root() / "samples" / place.fan_out / place.folder);
  for (const char* name : {"00", "ff"}) {
    if (!std::filesystem::exists(root() / "samples" / name)) std::filesystem::create_symlink("/etc", root() / "samples" / name);
  }
  expect_same(open(nullptr)->read(ref), small_tensors());
}

TEST_F(SealedStore, WhoIsAttachedWhenThePolicyGoesIsNotSentBytesInTheClear) {
  const auto reader = create();
  const SampleRef ref = put(*reader);
  // A store of the same name and incarnation, without a policy, as a robbed one that was emptied before would look.
  std::filesystem::remove_all(root() / "access");
  edit_store_file([](auto& value) { value["required"] = nlohmann::ordered_json::array(); });
  std::filesystem::remove(only_file());
  const auto robbed = create_shared_dir_store(temp_.path(), StoreId("st"), {});
  const SampleRef clear = put(*robbed, "a", 9);
  EXPECT_THROW(reader->read(clear), Corrupt);
  EXPECT_THROW(reader->read(ref), NotFound);
  const SampleRef sealed = put(*reader, "b");
  EXPECT_THAT(message_of<Corrupt>([&] { robbed->read(sealed); }), HasSubstr("the file is sealed, but the store has no access"));
}

TEST_F(SealedStore, RotationChangesTheSecretAndNothingElse) {
  const auto before = create();
  const SampleRef ref = put(*before);
  const StoreId id("st");
  rotate_shared_dir_secret(temp_.path(), id, *secret_of(kSecret), *secret_of("the next one"));
  EXPECT_THROW(open(secret_of(kSecret)), PermissionDenied);
  const auto after = open(secret_of("the next one"));
  expect_same(after->read(ref), small_tensors());
  expect_same(before->read(put(*after, "b", 2)), small_tensors(2));
  EXPECT_THROW(rotate_shared_dir_secret(temp_.path(), id, *secret_of(kSecret), *secret_of("x")), PermissionDenied);
  rotate_shared_dir_secret(temp_.path(), id, *secret_of("the next one"), *secret_of(kSecret));
  expect_same(open(secret_of(kSecret))->read(ref), small_tensors());
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(root() / "access"), {}), 1);  // old secrets open nothing
}

TEST_F(SealedStore, RotationOfAStoreWithoutASecretIsRefused) {
  create_shared_dir_store(temp_.path(), StoreId("st"), {});
  EXPECT_THAT(message_of<InvalidArgument>(
                  [&] { rotate_shared_dir_secret(temp_.path(), StoreId("st"), *secret_of(kSecret), *secret_of("b")); }),
              HasSubstr("has no secret to change"));
}

TEST_F(SealedStore, ARotationThatDiedInBetweenIsFinishedByGc) {
  const auto store = create();
  const std::string incarnation = put(*store).incarnation;
  const Policies policies(Folder::open(root() / "access"), incarnation);
  const auto current = policies.find();
  ASSERT_TRUE(current);
  const AccessPolicy next = rotate({"st", incarnation}, current->policy, *secret_of(kSecret), *secret_of("next"));
  policies.publish(Folder::open(root() / "tmp"), next, current->number + 1);
  EXPECT_THROW(policies.publish(Folder::open(root() / "tmp"), next, current->number + 1), Conflict);
  EXPECT_THROW(open(secret_of(kSecret)), PermissionDenied);
  store->gc();
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(root() / "access"), {}), 1);
  EXPECT_NO_THROW(open(secret_of("next")));
}

TEST_F(SealedStore, MakersThatRaceMakeOneStore) {
  constexpr int kMakers = 4;
  std::vector<pid_t> makers;
  for (int i = 0; i < kMakers; ++i) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      try {
        put(*create(), fmt::format("s{}", i));
        ::_exit(0);
      } catch (...) {
        ::_exit(1);
      }
    }
    makers.push_back(pid);
  }
  for (const pid_t pid : makers) {
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_EQ(status, 0);
  }
  const auto store = open(secret_of(kSecret));
  for (int i = 0; i < kMakers; ++i) expect_same(store->read(store->find(SampleId(fmt::format("s{}", i)))), small_tensors());
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(root() / "access"), {}), 1);
}

TEST_F(SealedStore, FilesAndFoldersAreForUserAndGroupAlone) {
  const mode_t before = ::umask(0);
  put(*create());
  ::umask(before);
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root())) {
    EXPECT_EQ(entry.status().permissions() & std::filesystem::perms::others_all, std::filesystem::perms::none) << entry.path();
  }
}

class CodecStore : public SealedStore {
 protected:
  std::unique_ptr<FeatureStore> create_with(Codec codec) {
    return create_shared_dir_store(temp_.path(), StoreId("st"), {.codec = codec});
  }
};

TEST_F(CodecStore, ALossyCodecStaysWithinItsBoundAndSaysSoInTheRef) {
  for (const Codec codec : {Codec::kInt8, Codec::kFp8E4M3}) {
    const auto store = create_shared_dir_store(temp_.path(), StoreId(std::string(codec_name(codec))), {.codec = codec});
    std::vector<float> values(64 * 32);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>((i * 37) % 101) / 50.F - 1;
    const Tensor hidden = Tensor::copy_of(DType::kFloat32, {64, 32}, std::as_bytes(std::span(values)));
    const TensorMap tensors{{"input_ids", random_tensor(DType::kInt64, {64}, 1)}, {"hidden", hidden}};
    const SampleRef ref = store->put(tensors, SampleId("a"), run_metadata());
    const auto codecs =
        std::find_if(ref.metadata.begin(), ref.metadata.end(), [](const auto& m) { return m.first == "codecs"; });
    ASSERT_NE(codecs, ref.metadata.end());
    EXPECT_EQ(codecs->second, fmt::format(R"({{"hidden":"{}"}})", codec_name(codec)));
    EXPECT_EQ(store->find(SampleId("a")).metadata, ref.metadata);
    EXPECT_EQ(store->find(SampleId("a")).feature_specs.size(), 2u);
    const Fetched fetched = store->get(ref);
    EXPECT_EQ(fetched.tensors[0].second.bytes.size(), 512u);
    expect_same({fetched.tensors[0]}, {tensors[0]});
    const auto got = fetched.tensors[1].second.as<float>();
    for (std::size_t token = 0; token < 64; ++token) {
      float largest = 0;
      for (std::size_t i = 0; i < 32; ++i) largest = std::max(largest, std::abs(values[token * 32 + i]));
      for (std::size_t i = 0; i < 32; ++i) {
        ASSERT_LE(std::abs(got[token * 32 + i] - values[token * 32 + i]), error_bound(codec, DType::kFloat32, largest));
      }
    }
    EXPECT_EQ(store->health().resident_bytes, 512u + 64 * 32 + 64 * 4);
    EXPECT_EQ(store->resident(ref).bytes, store->health().resident_bytes);
    store->release(fetched.handle);
    store->remove(ref);
    EXPECT_EQ(store->health().resident_bytes, 0u);
  }
}

TEST_F(CodecStore, WhatCannotBePackedIsRefusedBeforeAnythingIsWritten) {
  const auto store = create_with(Codec::kInt8);
  std::vector<float> values(32, 1.F);
  values[17] = std::numeric_limits<float>::quiet_NaN();
  const Tensor bad = Tensor::copy_of(DType::kFloat32, {4, 8}, std::as_bytes(std::span(values)));
  EXPECT_THAT(message_of<InvalidArgument>([&] {
                store->put({{"hidden", bad}}, SampleId("a"), run_metadata());
              }),
              AllOf(HasSubstr("put of sample 'a'"), HasSubstr("hidden")));
  EXPECT_THAT(message_of<InvalidArgument>([&] {
                store->put({{"x::scale", random_tensor(DType::kInt64, {4}, 1)}}, SampleId("a"), run_metadata());
              }),
              HasSubstr("'x::scale'"));
  EXPECT_EQ(store->health().resident_samples, 0u);
  EXPECT_THROW(store->find(SampleId("a")), NotFound);
}

TEST_F(CodecStore, TheCodecIsTheStoresOwn) {
  create_with(Codec::kZstd);
  EXPECT_THAT(message_of<InvalidArgument>([&] { create_with(Codec::kInt8); }), AllOf(HasSubstr("'zstd'"), HasSubstr("'int8'")));
  const auto store = open_shared_dir_store(temp_.path(), StoreId("st"), {});
  const Tensor even = Tensor::copy_of(DType::kInt64, {4096}, std::vector<std::byte>(4096 * 8, std::byte{1}));
  const SampleRef ref = store->put({{"even", even}}, SampleId("a"), run_metadata());
  EXPECT_LT(store->health().resident_bytes, 500u);
  EXPECT_EQ(ref.estimated_bytes, 4096u * 8);
  expect_same(store->read(ref), {{"even", even}});
}

TEST_F(CodecStore, ASmallFileCannotClaimAGigabyte) {
  const auto store = create_with(Codec::kZstd);
  const Tensor even = Tensor::copy_of(DType::kInt64, {4096}, std::vector<std::byte>(4096 * 8, std::byte{1}));
  const SampleRef ref = store->put({{"even", even}}, SampleId("a"), run_metadata());
  PackedSample lying = pack(Codec::kZstd, {{"even", even}});
  lying.packed[0].shape = {1 << 27};  // of 8 bytes
  auto& part = lying.parts[0].second;
  std::vector<std::byte> bytes(part.bytes.begin(), part.bytes.end());
  const std::uint32_t claim = 1U << 30;
  std::memcpy(bytes.data() + bytes.size() - 9 - 4, &claim, 4);
  part = Tensor::copy_of(DType::kUInt8, part.shape, bytes);
  const auto path = only_file();
  const UniqueFd fd = open_file(path, O_RDWR | O_TRUNC);
  write_generation(fd.get(), path, {"st", ref.incarnation, "a", ref.generation}, lying);
  EXPECT_THAT(message_of<Corrupt>([&] { store->read(store->find(SampleId("a"))); }), HasSubstr("no frame can"));
}

}  // namespace
}  // namespace draftflow::store
