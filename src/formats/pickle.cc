// SPDX-License-Identifier: Apache-2.0
#include "formats/pickle.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow::formats {
namespace {

constexpr std::uint32_t kNothing = 0xffffffff;
constexpr std::uint32_t kNone = 0, kFalse = 1, kTrue = 2;  // the arena's first values, shared

enum class Role { kRebuildTensor, kOrderedDict, kTypedStorage, kUntypedStorage };

struct Global {
  std::string_view name;  // module, space, attribute
  Role role;
  DType dtype = DType::kUInt8;
};

constexpr Global kGlobals[] = {
    {"torch._utils _rebuild_tensor_v2", Role::kRebuildTensor},
    {"collections OrderedDict", Role::kOrderedDict},
    {"torch BoolStorage", Role::kTypedStorage, DType::kBool},
    {"torch ByteStorage", Role::kTypedStorage, DType::kUInt8},
    {"torch CharStorage", Role::kTypedStorage, DType::kInt8},
    {"torch ShortStorage", Role::kTypedStorage, DType::kInt16},
    {"torch IntStorage", Role::kTypedStorage, DType::kInt32},
    {"torch LongStorage", Role::kTypedStorage, DType::kInt64},
    {"torch HalfStorage", Role::kTypedStorage, DType::kFloat16},
    {"torch BFloat16Storage", Role::kTypedStorage, DType::kBFloat16},
    {"torch FloatStorage", Role::kTypedStorage, DType::kFloat32},
    {"torch DoubleStorage", Role::kTypedStorage, DType::kFloat64},
    {"torch UntypedStorage", Role::kUntypedStorage},
    {"torch.storage UntypedStorage", Role::kUntypedStorage},
    {"torch.storage _UntypedStorage", Role::kUntypedStorage},
};

class Machine {
 public:
  Machine(std::span<const std::byte> bytes, std::string_view what) : bytes_(bytes), what_(what) {
    pickle_.values.reserve(std::min<std::size_t>(3 + bytes.size() / 8, 1024));
    pickle_.values.resize(3);
    pickle_.values[kFalse] = {.kind = PickleKind::kBool};
    pickle_.values[kTrue] = {.kind = PickleKind::kBool, .number = 1};
  }

  Pickle run() {
    while (!stopped_) {
      op_at_ = at_;
      step(take<std::uint8_t>());
    }
    if (stack_.size() != 1 || !marks_.empty()) fail("leaves more than one value");
    if (at_ != bytes_.size()) fail("goes on after its end");
    pickle_.top = stack_.back();
    return std::move(pickle_);
  }

 private:
  [[noreturn]] void fail(const std::string& problem) const {
    throw Corrupt(fmt::format("{}: data.pkl {} (at byte {}): the file is damaged", what_, problem, op_at_));
  }

  [[noreturn]] void refuse(const std::string& problem) const {
    throw InvalidArgument(fmt::format(
        "{}: data.pkl {} (at byte {}): only plain values and tensors are read, nothing was executed", what_, problem, op_at_));
  }

  std::span<const std::byte> take_bytes(std::uint64_t size) {
    if (size > bytes_.size() - at_) fail("ends in the middle of a value");
    at_ += size;
    return bytes_.subspan(at_ - size, size);
  }

  template <class T>
  T take() {
    T value;
    std::memcpy(&value, take_bytes(sizeof(T)).data(), sizeof(T));
    return value;
  }

  std::string_view take_text(std::uint64_t size) {
    const auto bytes = take_bytes(size);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  std::string_view take_line() {
    const auto rest = bytes_.subspan(at_);
    const auto end = std::find(rest.begin(), rest.end(), std::byte{'\n'});
    if (end == rest.end()) fail("ends in the middle of a name");
    const std::string_view line = take_text(static_cast<std::uint64_t>(end - rest.begin()));
    ++at_;
    return line;
  }

  void push(PickleValue value) {
    pickle_.values.push_back(std::move(value));
    stack_.push_back(static_cast<std::uint32_t>(pickle_.values.size() - 1));
  }

  void push_int(std::int64_t number) { push({.kind = PickleKind::kInt, .number = number}); }

  // Nothing reaches below the newest mark, as in Python.
  std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }

  std::uint32_t top() const {
    if (stack_.size() <= floor()) fail("takes a value that is not there");
    return stack_.back();
  }

  std::uint32_t pop() {
    const std::uint32_t index = top();
    stack_.pop_back();
    return index;
  }

  std::vector<std::uint32_t> pop_some(std::size_t count) {
    if (stack_.size() - floor() < count) fail("takes a value that is not there");
    std::vector<std::uint32_t> items(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return items;
  }

  std::vector<std::uint32_t> pop_to_mark() {
    if (marks_.empty()) fail("has no mark where it needs one");
    std::vector<std::uint32_t> items = pop_some(stack_.size() - marks_.back());
    marks_.pop_back();
    return items;
  }

  void push_tuple(std::vector<std::uint32_t> items) { push({.kind = PickleKind::kTuple, .items = std::move(items)}); }

  void extend(PickleKind kind, const std::vector<std::uint32_t>& items) {
    PickleValue& target = pickle_.values[top()];
    if (target.kind != kind) fail(fmt::format("adds items to a {}", python_type(target.kind)));
    if (kind == PickleKind::kDict && items.size() % 2 != 0) fail("gives a dict a key without a value");
    target.items.insert(target.items.end(), items.begin(), items.end());
  }

  void put(std::uint32_t slot) {
    const std::uint32_t value = top();
    if (slot >= bytes_.size()) fail(fmt::format("uses memo slot {}", slot));  // a writer numbers its slots from 0
    if (slot >= memo_.size()) memo_.resize(slot + 1, kNothing);
    memo_[slot] = value;
  }

  void get(std::uint32_t slot) {
    if (slot >= memo_.size() || memo_[slot] == kNothing) fail(fmt::format("reads memo slot {}, which was never filled", slot));
    stack_.push_back(memo_[slot]);
  }

  void push_text(std::uint64_t size) {
    const std::string_view text = take_text(size);
    if (find_invalid_utf8(text) != std::string_view::npos) fail("has a string that is not UTF-8");
    push({.kind = PickleKind::kStr, .text = text});
  }

  void push_long(std::size_t size) {
    const auto bytes = take_bytes(size);
    std::uint64_t number = size > 0 && (std::to_integer<int>(bytes.back()) & 0x80) != 0 ? ~std::uint64_t{0} : 0;
    std::memcpy(&number, bytes.data(), std::min<std::size_t>(size, sizeof number));
    push({.kind = PickleKind::kInt, .wide = size > sizeof number, .number = static_cast<std::int64_t>(number)});
  }

  void push_global() {
    const std::string_view module = take_line(), attribute = take_line();
    const auto row = std::find_if(std::begin(kGlobals), std::end(kGlobals), [&](const Global& global) {
      return global.name.size() == module.size() + 1 + attribute.size() && global.name.starts_with(module) &&
             global.name[module.size()] == ' ' && global.name.ends_with(attribute);
    });
    if (row == std::end(kGlobals))
      refuse(fmt::format("asks for '{}.{}', which is not on the list", printable(module), printable(attribute)));
    push({.kind = PickleKind::kGlobal, .number = row - std::begin(kGlobals)});
  }

  // ("storage", class, key, location, number of elements)
  void persistent_id() {
    const PickleValue& id = pickle_[pop()];
    if (id.kind != PickleKind::kTuple || id.items.size() != 5) fail("has a persistent id that is no storage");
    const PickleValue &tag = pickle_[id.items[0]], &type = pickle_[id.items[1]], &key = pickle_[id.items[2]],
                      &count = pickle_[id.items[4]];
    if (tag.kind != PickleKind::kStr || tag.text != "storage" || type.kind != PickleKind::kGlobal ||
        key.kind != PickleKind::kStr || count.kind != PickleKind::kInt || count.wide || count.number < 0) {
      fail("has a persistent id that is no storage");
    }
    const Global& global = kGlobals[type.number];
    PickleValue storage{.kind = PickleKind::kStorage, .number = count.number, .text = key.text};
    if (global.role == Role::kTypedStorage) {
      storage.dtype = global.dtype;
    } else if (global.role != Role::kUntypedStorage) {
      fail(fmt::format("has a storage of class '{}'", global.name));
    }
    push(std::move(storage));
  }

  void reduce() {
    const std::uint32_t arguments = pop(), callee = pop();
    const PickleValue& function = pickle_[callee];
    const PickleValue& tuple = pickle_[arguments];
    if (function.kind != PickleKind::kGlobal || tuple.kind != PickleKind::kTuple) fail("calls what cannot be called");
    const Global& global = kGlobals[function.number];
    if (global.role == Role::kOrderedDict && tuple.items.empty()) {
      push({.kind = PickleKind::kDict});
    } else if (global.role == Role::kRebuildTensor && (tuple.items.size() == 6 || tuple.items.size() == 7)) {
      if (pickle_[tuple.items[0]].kind != PickleKind::kStorage) fail("has a tensor without a storage");
      push({.kind = PickleKind::kTensor, .items = {tuple.items.begin(), tuple.items.begin() + 6}});
    } else {
      refuse(fmt::format("calls '{}' with {} arguments", global.name, tuple.items.size()));
    }
  }

  // State of an OrderedDict (torch hangs `_metadata` on a state dict): attributes, not items, so it is dropped.
  void build() {
    pop();
    if (pickle_[top()].kind != PickleKind::kDict)
      refuse(fmt::format("sets attributes of a {}", python_type(pickle_[top()].kind)));
  }

  void begin_protocol() {
    const int version = take<std::uint8_t>();
    if (version != 2) refuse(fmt::format("is pickle protocol {}: 2 is read, which torch.save uses by default", version));
  }

  void step(std::uint8_t op) {
    switch (op) {
      case 0x80: return begin_protocol();
      case '.': stopped_ = true; return;
      case '(': marks_.push_back(stack_.size()); return;
      case 'N': stack_.push_back(kNone); return;
      case 0x88: stack_.push_back(kTrue); return;
      case 0x89: stack_.push_back(kFalse); return;
      case '}': return push({.kind = PickleKind::kDict});
      case ']': return push({.kind = PickleKind::kList});
      case ')': return push_tuple({});
      case 0x85: return push_tuple(pop_some(1));
      case 0x86: return push_tuple(pop_some(2));
      case 0x87: return push_tuple(pop_some(3));
      case 't': return push_tuple(pop_to_mark());
      case 'K': return push_int(take<std::uint8_t>());
      case 'M': return push_int(take<std::uint16_t>());
      case 'J': return push_int(take<std::int32_t>());
      case 0x8a: return push_long(take<std::uint8_t>());
      case 'G': take_bytes(8); return push({.kind = PickleKind::kFloat});
      case 'X': return push_text(take<std::uint32_t>());
      case 'U': return push_text(take<std::uint8_t>());
      case 'q': return put(take<std::uint8_t>());
      case 'r': return put(take<std::uint32_t>());
      case 'h': return get(take<std::uint8_t>());
      case 'j': return get(take<std::uint32_t>());
      case 'a': return extend(PickleKind::kList, pop_some(1));
      case 'e': return extend(PickleKind::kList, pop_to_mark());
      case 's': return extend(PickleKind::kDict, pop_some(2));
      case 'u': return extend(PickleKind::kDict, pop_to_mark());
      case 'c': return push_global();
      case 'Q': return persistent_id();
      case 'R': return reduce();
      case 'b': return build();
      default: refuse(fmt::format("uses opcode 0x{:02x}", op));
    }
  }

  std::span<const std::byte> bytes_;
  std::string_view what_;
  std::size_t at_ = 0, op_at_ = 0;
  bool stopped_ = false;
  Pickle pickle_;
  std::vector<std::uint32_t> stack_, memo_;
  std::vector<std::size_t> marks_;
};

}  // namespace

Pickle read_pickle(std::span<const std::byte> bytes, std::string_view what) {
  if (bytes.size() > kMaxPickleBytes) {
    throw InvalidArgument(fmt::format("{}: data.pkl has {} bytes: at most {} are read; save fewer objects in one file", what,
                                      bytes.size(), kMaxPickleBytes));
  }
  return Machine(bytes, what).run();
}

std::string_view torch_storage_class(DType dtype) {
  const auto row = std::find_if(std::begin(kGlobals), std::end(kGlobals), [&](const Global& global) {
    return global.role == Role::kTypedStorage && global.dtype == dtype;
  });
  return row->name.substr(row->name.find(' ') + 1);
}

const char* python_type(PickleKind kind) {
  switch (kind) {
    case PickleKind::kNone: return "NoneType";
    case PickleKind::kBool: return "bool";
    case PickleKind::kInt: return "int";
    case PickleKind::kFloat: return "float";
    case PickleKind::kStr: return "str";
    case PickleKind::kTuple: return "tuple";
    case PickleKind::kList: return "list";
    case PickleKind::kDict: return "dict";
    case PickleKind::kGlobal: return "type";
    case PickleKind::kStorage: return "storage";
    case PickleKind::kTensor: return "tensor";
  }
  return "?";
}

}  // namespace draftflow::formats
