// SPDX-License-Identifier: Apache-2.0
#include "formats/pickle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "draftflow/base/error.h"

namespace draftflow::formats {
namespace {

using testing::HasSubstr;
using namespace std::string_literals;

Pickle read(const std::string& text) {
  return read_pickle(std::as_bytes(std::span(text)), "f");
}

template <class E>
std::string error_of(const std::string& text) {
  try {
    read(text);
  } catch (const E& error) {
    return error.what();
  } catch (const Error& error) {
    return std::string("another kind: ") + error_kind_name(error.kind()) + ": " + error.what();
  }
  return "no error";
}

struct Case {
  std::string text;
  PickleKind kind;
  std::int64_t number;
};

TEST(Pickle, ReadsPlainValues) {
  const Case cases[] = {{"\x80\x02N."s, PickleKind::kNone, 0},
                        {"\x80\x02\x88."s, PickleKind::kBool, 1},
                        {"\x80\x02\x89."s, PickleKind::kBool, 0},
                        {"\x80\x02K\xff."s, PickleKind::kInt, 255},
                        {"\x80\x02M\x34\x12."s, PickleKind::kInt, 0x1234},
                        {"\x80\x02J\xfe\xff\xff\xff."s, PickleKind::kInt, -2},
                        {"\x80\x02\x8a\x00."s, PickleKind::kInt, 0},
                        {"\x80\x02\x8a\x02\x00\xff."s, PickleKind::kInt, -256},
                        {"\x80\x02\x8a\x06\0\0\0\0\0\1."s, PickleKind::kInt, std::int64_t{1} << 40},
                        {"\x80\x02G\x3f\xf8\0\0\0\0\0\0."s, PickleKind::kFloat, 0},
                        {"\x80\x02X\2\0\0\0ab."s, PickleKind::kStr, 0},
                        {"\x80\x02U\2ab."s, PickleKind::kStr, 0},
                        {"\x80\x02)."s, PickleKind::kTuple, 0},
                        {"\x80\x02]."s, PickleKind::kList, 0},
                        {"\x80\x02}."s, PickleKind::kDict, 0},
                        {"\x80\x02"s + "ccollections\nOrderedDict\n)R}b.", PickleKind::kDict, 0}};
  for (const Case& one : cases) {
    const Pickle pickle = read(one.text);
    EXPECT_EQ(pickle[pickle.top].kind, one.kind) << testing::PrintToString(one.text);
    EXPECT_EQ(pickle[pickle.top].number, one.number) << testing::PrintToString(one.text);
  }
}

TEST(Pickle, IntegersOfMoreThan64BitsAreWide) {
  const Pickle pickle = read("\x80\x02\x8a\x09\0\0\0\0\0\0\0\0\1."s);
  EXPECT_TRUE(pickle[pickle.top].wide);
}

TEST(Pickle, ReadsContainersAndTheMemo) {
  const std::string text =
      "\x80\x02}q\0(X\1\0\0\0aq\1]q\2(K\1K\2eX\1\0\0\0bj\2\0\0\0u."s;  // {a: l, b: l}; the values point into it
  const Pickle pickle = read(text);
  const PickleValue& dict = pickle[pickle.top];
  ASSERT_EQ(dict.items.size(), 4u);
  EXPECT_EQ(pickle[dict.items[2]].text, "b");
  EXPECT_EQ(dict.items[1], dict.items[3]);
  EXPECT_EQ(pickle[dict.items[1]].items.size(), 2u);
}

TEST(Pickle, CyclesAndDeepNestingAreHarmless) {
  const Pickle cycle = read("\x80\x02]q\0h\0a."s);
  EXPECT_EQ(cycle[cycle.top].items, std::vector<std::uint32_t>{cycle.top});
  const Pickle deep = read("\x80\x02N"s + std::string(1'000'000, '\x85') + ".");
  EXPECT_EQ(deep[deep.top].kind, PickleKind::kTuple);
}

TEST(Pickle, RefusesGlobalsByName) {
  EXPECT_THAT(error_of<InvalidArgument>("\x80\x02"s + "cposix\nsystem\n(X\2\0\0\0lstR."s),
              HasSubstr("f: data.pkl asks for 'posix.system', which is not on the list (at byte 2)"));
  for (const char* name :
       {"builtins\neval", "torch\nFloatStorage2", "torch\n", "\n", "os\nsystem", "torch._utils\n_rebuild_tensor",
        "collections\nOrderedDict.__init__", "torch\nComplexFloatStorage"}) {
    EXPECT_THAT(error_of<InvalidArgument>("\x80\x02"s + "c" + name + "\n."), HasSubstr("is not on the list")) << name;
  }
}

TEST(Pickle, RefusesOtherOpcodesAndProtocols) {
  for (const char op :
       "\x8c\x93\x94\x95\x8e\x81\x82io"
       "dl0123pPgBCIFLSVTY"s) {
    EXPECT_THAT(error_of<InvalidArgument>("\x80\x02N"s + op), HasSubstr("uses opcode 0x")) << op;
  }
  EXPECT_THAT(error_of<InvalidArgument>("\x80\x04N."s), HasSubstr("is pickle protocol 4: 2 is read"));
}

TEST(Pickle, RefusesCallsOfWhatIsOnTheList) {
  const std::string dict = "ccollections\nOrderedDict\n";
  EXPECT_THAT(error_of<InvalidArgument>("\x80\x02"s + dict + "N\x85R."),
              HasSubstr("calls 'collections OrderedDict' with 1 arguments"));
  EXPECT_THAT(error_of<InvalidArgument>("\x80\x02"s + "ctorch\nLongStorage\n)R."), HasSubstr("calls 'torch LongStorage'"));
  EXPECT_THAT(error_of<InvalidArgument>("\x80\x02"s + dict + "}b."), HasSubstr("sets attributes of a type"));
  EXPECT_THAT(error_of<Corrupt>("\x80\x02N)R."s), HasSubstr("calls what cannot be called"));
  EXPECT_THAT(error_of<Corrupt>("\x80\x02"s + dict + "NR."), HasSubstr("calls what cannot be called"));
  EXPECT_THAT(error_of<Corrupt>("\x80\x02"s + "ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR."),
              HasSubstr("a tensor without a storage"));
}

TEST(Pickle, RefusesPersistentIdsThatAreNoStorage) {
  const std::string type = "ctorch\nLongStorage\n";
  for (const std::string& id : {"N"s, ")"s, "(NNNNNt"s, "(X\7\0\0\0storage"s + type + "X\1\0\0\0000NNt"s,
                                "(X\7\0\0\0storage"s + type + "X\1\0\0\0000NJ\xff\xff\xff\xfft"s,
                                "(X\7\0\0\0storageNX\1\0\0\0000NK\1t"s, "(X\6\0\0\0modules"s + type + "X\1\0\0\0000NK\1t"s}) {
    EXPECT_NE(error_of<Corrupt>("\x80\x02"s + id + "Q."), "no error");
  }
  EXPECT_THAT(error_of<Corrupt>("\x80\x02(X\7\0\0\0storage"s + "ccollections\nOrderedDict\n" + "X\1\0\0\0000NK\1tQ."s),
              HasSubstr("has a storage of class 'collections OrderedDict'"));
}

TEST(Pickle, RefusesDamage) {
  EXPECT_THAT(error_of<Corrupt>(""), HasSubstr("ends in the middle of a value"));
  EXPECT_THAT(error_of<Corrupt>("\x80\x02X\xff\xff\xff\xff."s), HasSubstr("ends in the middle of a value"));
  EXPECT_THAT(error_of<Corrupt>("\x80\x02\x8a\xff\1."s), HasSubstr("ends in the middle of a value"));
  EXPECT_THAT(error_of<Corrupt>("\x80\x02"s + "ctorch"), HasSubstr("ends in the middle of a name"));
  EXPECT_THAT(error_of<Corrupt>("\x80\x02X\1\0\0\0\xff."s), HasSubstr("a string that is not UTF-8"));
  EXPECT_THAT(error_of<Corrupt>("\x80\x02N.N"s), HasSubstr("goes on after its end"));
  EXPECT_THAT(error_of<Corrupt>("\x80\x02NN."s), HasSubstr("leaves more than one value"));
  EXPECT_THAT(error_of<Corrupt>("\x80\x02(N."s), HasSubstr("leaves more than one value"));
  EXPECT_THAT(error_of<Corrupt>("\x80\x02."s), HasSubstr("leaves more than one value"));
}

TEST(Pickle, RefusesStackAndMemoMisuse) {
  for (const char* text : {"\x85.", "N\x86.", "NN\x87.", "q\1.", "(R.", "N(a.", "N(s.", "N(b.", "R.", "Q.", "b.", "]a."}) {
    EXPECT_THAT(error_of<Corrupt>("\x80\x02"s + text), HasSubstr("takes a value that is not there")) << text;
  }
  for (const char* text : {"t.", "e.", "u."}) {
    EXPECT_THAT(error_of<Corrupt>("\x80\x02"s + text), HasSubstr("no mark where it needs one")) << text;
  }
  EXPECT_THAT(error_of<Corrupt>("\x80\x02h\1."s), HasSubstr("reads memo slot 1, which was never filled"));
  EXPECT_THAT(error_of<Corrupt>("\x80\x02j\xff\xff\xff\xff."s), HasSubstr("reads memo slot 4294967295"));
  EXPECT_THAT(error_of<Corrupt>("\x80\x02Nr\xff\xff\xff\x7f."s), HasSubstr("uses memo slot 2147483647"));
  EXPECT_THAT(error_of<Corrupt>("\x80\x02NNa."s), HasSubstr("adds items to a NoneType"));
  EXPECT_THAT(error_of<Corrupt>("\x80\x02}NNNs."s), HasSubstr("adds items to a NoneType"));
  EXPECT_THAT(error_of<Corrupt>("\x80\x02}(Nu."s), HasSubstr("a key without a value"));
}

TEST(Pickle, RefusesOneOverTheLimit) {
  EXPECT_THAT(error_of<InvalidArgument>(std::string(kMaxPickleBytes + 1, 'N')), HasSubstr("at most 8388608 are read"));
}

}  // namespace
}  // namespace draftflow::formats
