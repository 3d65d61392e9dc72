#include "nn/checkpoint/safetensors.h"

#include "nn/checkpoint/crc32c.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

// A file with this header over so many zero bytes.
std::string file_with(const Folder& folder, const std::string& header, size_t data, const std::string& name = "f") {
  uint64_t n = header.size();
  return folder.write(name, std::string(reinterpret_cast<const char*>(&n), 8) + header + std::string(data, '\0'));
}

template <class T>
Tensor counting(const Shape& shape) {
  std::vector<T> v;
  for (int64_t i = 0; i < numel(shape); ++i) v.push_back(T(float(i)));
  return Tensor::of<T>(shape, std::span<const T>(v));
}

}  // namespace

TEST_CASE("crc32c has its published values, in one part or two") {
  auto of = [](const std::string& s, uint32_t before = 0) { return crc32c(std::as_bytes(std::span(s)), before); };
  CHECK(of("") == 0);
  CHECK(of("123456789") == 0xe3069283);
  CHECK(of(std::string(32, '\0')) == 0x8a9136aa);
  CHECK(of(std::string(32, '\xff')) == 0x62a8ab43);
  std::string text = some_text(1000);
  for (size_t cut : {0, 1, 7, 8, 9, 500, 999, 1000}) CHECK(of(text.substr(cut), of(text.substr(0, cut))) == of(text));
}

TEST_CASE("tensors of every type come back from a safetensors file, whole and by range, on any mesh") {
  Folder folder;
  std::vector<NamedSpec> specs = {{"f", DType::f32, {5, 7}}, {"b", DType::bf16, {3}},    {"i", DType::i64, {2, 0}},
                                  {"d", DType::f64, {}},     {"t", DType::boolean, {4}}, {"j", DType::i64, {6}}};
  std::vector<Tensor> tensors = {counting<float>({5, 7}),
                                 counting<BFloat16>({3}),
                                 counting<int64_t>({2, 0}),
                                 Tensor::of<double>({}, {2.5}),
                                 Tensor::of<bool>({4}, {true, false, true, true}),
                                 counting<int64_t>({6})};
  std::string path = (folder.path / "x.safetensors").string();
  save_safetensors(path, specs, [&](size_t i) { return tensors[i]; }, {{"made by", "a test"}});
  CHECK(SafetensorsFile(path).metadata().at("made by") == "a test");
  Safetensors file(path);
  CHECK(file.names().size() == 6);
  for (size_t i = 0; i < specs.size(); ++i) {
    Tensor t = file.read(specs[i].name);
    CHECK(t.dtype() == specs[i].dtype);
    CHECK(t.shape() == specs[i].shape);
    CHECK(values(t) == values(tensors[i]));
  }
  Box box = whole_box({5, 7});
  box[0] = {1, 4}, box[1] = {2, 5};
  Tensor part(std::make_shared<Allocator>(), DType::f32, {3, 3});
  file.read("f", box, part);
  CHECK(values(part) == std::vector<double>{9, 10, 11, 16, 17, 18, 23, 24, 25});
  Tensor wide(std::make_shared<Allocator>(), DType::f64, {3});
  file.read("b", whole_box({3}), wide);
  CHECK(values(wide) == std::vector<double>{0, 1, 2});
  for (const char* mesh : {"x=1", "x=2", "x=3", "x=2,y=2"})
    for (int d : {0, 1})
      on_mesh(mesh, [&](const DeviceMesh& m) {
        DistributedTensor x = DistributedTensor::empty(m, {DType::f32, {5, 7}, {Shard(d)}});
        Safetensors(path).read("f", x);
        check(values(x.full_tensor()) == values(tensors[0]), "{}", to_string(x));
      });
}

TEST_CASE("half precision is read exactly") {
  Folder folder;
  const uint16_t bits[] = {0x0000, 0x8000, 0x3c00, 0xc000, 0x7bff, 0x0001, 0x03ff, 0x0400, 0x7c00, 0x3555};
  std::string header = R"({"h": {"dtype": "F16", "shape": [10], "data_offsets": [0, 20]}})";
  uint64_t n = header.size();
  std::string path = folder.write("h.safetensors", std::string(reinterpret_cast<const char*>(&n), 8) + header +
                                                       std::string(reinterpret_cast<const char*>(bits), 20));
  CHECK(values(Safetensors(path).read("h")) ==
        std::vector<double>{0, -0.0, 1, -2, 65504, 0x1p-24, 1023 * 0x1p-24, 0x1p-14, INFINITY, 0.333251953125});
}

TEST_CASE("a folder of safetensors is one file, or shards and their index") {
  Folder folder;
  std::vector<NamedSpec> specs;
  for (int i = 0; i < 5; ++i) specs.push_back({fmt::format("t{}", i), DType::f32, {10}});
  auto value = [](size_t i) { return f32({10}, int(i)); };
  save_safetensors_folder(folder.path, specs, value, 100);
  CHECK(std::filesystem::exists(folder.path / "model-00002-of-00003.safetensors"));
  Safetensors sharded(folder.path);
  for (size_t i = 0; i < 5; ++i) CHECK(values(sharded.read(specs[i].name)) == values(value(i)));
  auto index = json(R"({"metadata": {}})");
  index["weight_map"] = {{"t0", "model-00001-of-00003.safetensors"}};
  folder.write("model.safetensors.index.json", index.dump());
  CHECK_THAT(error_of([&] { Safetensors s(folder.path); }),
             Contains("does not say that model-00001-of-00003.safetensors has the tensor \"t1\""));
  index["weight_map"]["t1"] = "model-00001-of-00003.safetensors";
  index["weight_map"]["t9"] = "model-00001-of-00003.safetensors";
  folder.write("model.safetensors.index.json", index.dump());
  CHECK_THAT(error_of([&] { Safetensors s(folder.path); }), Contains("has the tensor \"t9\", but it has not"));
  index["weight_map"]["t9"] = "../f";
  folder.write("model.safetensors.index.json", index.dump());
  CHECK_THAT(error_of([&] { Safetensors s(folder.path); }),
             Contains("the tensor \"t9\" is in \"../f\", which is no file beside it"));
  folder.write("model.safetensors.index.json", "{}");
  CHECK_THAT(error_of([&] { Safetensors s(folder.path); }), Contains("has no \"weight_map\" from tensors to files"));
  Folder empty;
  CHECK_THAT(error_of([&] { Safetensors s(empty.path); }),
             Contains("has neither model.safetensors nor model.safetensors.index.json"));
}

TEST_CASE("a safetensors file that is not exactly what its header says is an error") {
  Folder folder;
  struct Case {
    std::string header;
    size_t data;
    std::string error;
  };
  const Case cases[] = {
      {"{", 0, "is not JSON: "},
      {"[]", 0, "the header is no object"},
      {R"({"a": {"shape": )" + std::string(100000, '['), 0,
       ": more than 100 objects and arrays are nested in each other"},
      {"{}", 1, "the tensors end at byte 0, but there are 1"},
      {R"({"a": 3})", 0, "the tensor \"a\" is no object"},
      {R"({"a": {"shape": [1], "data_offsets": [0, 4]}})", 4, "the tensor \"a\" has no \"dtype\""},
      {R"({"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}})", 4, "has an unknown dtype \"F31\""},
      {R"({"a": {"dtype": "F32", "data_offsets": [0, 4]}})", 4, "has no \"shape\""},
      {R"({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}})", 4, "has a size -1"},
      {R"({"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}})", 4, "has a size 1.5"},
      {R"({"a": {"dtype": "F32", "shape": [1,1,1,1,1,1,1,1,1], "data_offsets": [0, 4]}})", 4,
       "has 9 dimensions, and at most 8 are supported"},
      {R"({"a": {"dtype": "F32", "shape": [4611686018427387904, 2], "data_offsets": [0, 4]}})", 4,
       "has more bytes than there can be"},
      {R"({"a": {"dtype": "F32", "shape": [4611686018427387904, 0, 4], "data_offsets": [0, 0]}})", 0,
       "has more bytes than there can be"},
      {R"({"a": {"dtype": "F32", "shape": [1]}})", 4, "has no two \"data_offsets\""},
      {R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}})", 4, "is at bytes 4 to 0 of 4"},
      {R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}})", 4, "is at bytes 0 to 8 of 4"},
      {R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}})", 4,
       "is F32[2] of 8 bytes, but its data_offsets have 4"},
      {R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": 1}})", 4, "has a field \"x\""},
      {R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
           "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}})",
       12, "the tensors' bytes overlap or leave a gap at byte 4"},
      {R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
           "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})",
       4, "the tensors' bytes overlap or leave a gap at byte 4"},
      {R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
           "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})",
       4, "the key \"a\" stands twice in one object"},
      {R"({"__metadata__": {"a": 1}})", 0, "\"__metadata__\" is not an object of strings"},
  };
  for (const Case& c : cases) {
    INFO(c.header);
    std::string path = file_with(folder, c.header, c.data);
    CHECK_THAT(error_of([&] { SafetensorsFile f(path); }), Contains(c.error) && Contains(path));
  }
  CHECK_THAT(error_of([&] { SafetensorsFile f(folder.write("short", "1234567")); }),
             Contains("7 bytes are too short for a safetensors file"));
  CHECK_THAT(error_of([&] { SafetensorsFile f(folder.write("long", "\xff\xff\xff\xff\xff\xff\xff\xff")); }),
             Contains("truncated, or no safetensors file"));
  CHECK_THAT(error_of([&] { SafetensorsFile f(folder.path / "none"); }),
             Contains("[safetensors] cannot read ") && Contains("No such file or directory"));
  CHECK_THAT(error_of([&] { SafetensorsFile f(folder.path); }), Contains(": it is no file"));

  Safetensors good(file_with(folder, R"({"a": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]},
      "b": {"dtype": "BOOL", "shape": [1], "data_offsets": [4, 5]}})",
                             5));
  CHECK_THAT(error_of([&] { good.read("c"); }), Contains("has no tensor \"c\""));
  CHECK_THAT(error_of([&] { good.read("a"); }), Contains("a has elements I32, which are not supported: F32"));
  Tensor t(std::make_shared<Allocator>(), DType::f32, {1});
  CHECK_THAT(error_of([&] { good.read("b", whole_box({1}), t); }),
             Contains("b has elements BOOL, which do not convert to f32"));
  std::string path = file_with(folder, R"({"b": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}})", 1);
  std::fstream(path, std::ios::in | std::ios::out).seekp(-1, std::ios::end).put(2);
  CHECK_THAT(error_of([&] { Safetensors(path).read("b"); }), Contains("b has a bool that is neither 0 nor 1"));
}

TEST_CASE("errors of writing safetensors") {
  Folder folder;
  auto file = folder.path / "x";
  auto value = [](size_t) { return f32({2}, 1); };
  CHECK(error_of([&] {
          save_safetensors(file, {{"a", DType::f32, {2}}, {"a", DType::f32, {2}}}, value);
        }) == "[save_safetensors] two tensors are called \"a\"");
  CHECK(error_of([&] {
          save_safetensors(file, {{"a", DType::f32, {3}}}, value);
        }) == "[save_safetensors] \"a\" is f32[2], not f32[3] on the host");
  CHECK(std::filesystem::is_empty(folder.path));  // nothing half is left
  CHECK_THAT(error_of([&] { save_safetensors(folder.path / "no" / "x", {}, value); }),
             Contains("[save_safetensors] cannot write ") && Contains("No such file or directory"));
  CHECK_THAT(error_of([&] { sync_folder(folder.path / "no", "who"); }), StartsWith("[who] cannot sync the folder "));
  CHECK_THAT(error_of([&] { publish(folder.path / "no", folder.path / "yes", "who"); }),
             StartsWith("[who] cannot rename ") && Contains("No such file or directory"));
  CHECK_THAT(error_of([&] {
               std::filesystem::create_symlink("/dev/full", folder.path / "full");
               NewFile full(folder.path / "full", "save_safetensors");
               full.write("text");
             }),
             Contains("full: No space left on device; make room, or keep fewer checkpoints"));
}
