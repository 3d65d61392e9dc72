#include "dtensor/npy.h"

#include <catch2/catch.hpp>

#include <fmt/format.h>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "tests/dtensor/ranks.h"
#include "tests/folder.h"
#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;
namespace fs = std::filesystem;

namespace {

Tensor counting(DType t, const Shape& shape) {
  Tensor x(std::make_shared<Allocator>(), t, shape);
  for (int64_t i = 0; i < x.bytes(); ++i)
    x.bytes_data()[i] = std::byte(t == DType::boolean ? mix(uint64_t(i)) % 2 : mix(uint64_t(i)));
  return x;
}

bool same(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         (a.bytes() == 0 || std::memcmp(a.bytes_data(), b.bytes_data(), size_t(a.bytes())) == 0);
}

std::string contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

std::string file_of(const std::string& dictionary, const std::string& elements, int version = 1) {
  std::string header = "\x93NUMPY";
  header += char(version), header += char(0);
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) header += char(dictionary.size() >> 8 * i & 255);
  return header + dictionary + elements;
}

const std::string data = DTENSOR_SOURCE_DIR "/tests/dtensor/data/";

}  // namespace

TEST_CASE("files that NumPy wrote are read") {
  CHECK(same(load_npy(data + "c_order.npy"), Tensor::of<float>({2, 3}, {0, 0.25, 0.5, 0.75, 1, 1.25})));
  std::vector<int64_t> counted;
  for (int64_t i = 0; i < 24; ++i) counted.push_back(i);
  CHECK(values<int64_t>(load_npy(data + "fortran_order.npy")) == counted);
  // What we write is what NumPy wrote, byte for byte.
  Folder folder;
  save_npy(folder / "x.npy", load_npy(data + "c_order.npy"));
  CHECK(contents(folder / "x.npy") == contents(data + "c_order.npy"));
}

TEST_CASE("tensors of all types and shapes are saved and loaded") {
  Folder folder;
  for (DType t : {DType::f32, DType::f64, DType::i64, DType::boolean})
    for (const Shape& shape :
         {Shape{}, Shape{0}, Shape{1}, Shape{5}, Shape{2, 0, 3}, Shape{3, 4, 5}, Shape{1, 2, 1, 2, 1, 2, 1, 2}}) {
      Tensor x = counting(t, shape);
      save_npy(folder / "x.npy", x);
      CHECK(same(load_npy(folder / "x.npy"), x));
      CHECK(contents(folder / "x.npy").find('\n') % 64 == 63);
    }
  // Strides do not matter, and an older file is replaced.
  Tensor strided = scattered<float>(std::make_shared<Allocator>(), {2, 3}, {1, 2, 3, 4, 5, 6});
  save_npy(folder / "x.npy", strided);
  CHECK(values<float>(load_npy(folder / "x.npy")) == std::vector<float>{1, 2, 3, 4, 5, 6});
  CHECK(std::distance(fs::directory_iterator(folder.path), {}) == 1);  // nothing beside it
}

TEST_CASE("distributed tensors are saved and loaded in any layout") {
  Folder folder;
  for (const Shape& shape : {Shape{}, Shape{1}, Shape{5, 7}, Shape{2, 3, 5}}) {
    Tensor whole = counting(DType::i64, shape);
    save_npy(folder / "whole.npy", whole);
    // The same in Fortran's order.
    std::string sizes = fmt::format("{}", fmt::join(shape.begin(), shape.end(), ", "));
    std::vector<int> order;
    for (int d = shape.dims(); d-- > 0;) order.push_back(d);
    Tensor reversed = whole.permute(order).contiguous();
    write(folder / "fortran.npy",
          file_of(fmt::format("{{'shape': ({},), 'fortran_order': True, \"descr\": '<i8'}}\n", sizes),
                  {reinterpret_cast<const char*>(reversed.bytes_data()), size_t(reversed.bytes())}, 2));
    if (shape.empty())
      fs::copy_file(folder / "whole.npy", folder / "fortran.npy", fs::copy_options::overwrite_existing);
    for (const std::vector<int>& mesh_sizes : std::vector<std::vector<int>>{{1}, {3}, {2, 2}}) {
      MeshShape mesh_shape = mesh_of(mesh_sizes);
      launch(mesh_shape.world(), [&](Rank& rank) {
        DeviceMesh mesh(rank, mesh_shape);
        Log log;
        for (const Layout& l : all_layouts(mesh_shape.axes(), shape.dims()))
          for (const char* name : {"whole.npy", "fortran.npy"}) {
            Observing scope(rank, log);
            log = {};
            DistributedTensor x = load_npy(folder / name, mesh, l), y = DistributedTensor::distribute(whole, mesh, l);
            check(log.lines.empty() && x.layout() == y.layout(), "nothing is communicated");
            check(same(x.local(), y.local().contiguous()), "{} as {}", name, to_string(x));
            save_npy(folder / "again.npy", x);
            check(same(load_npy(folder / "again.npy"), whole), "saved from {}", to_string(x));
            mesh.communicator(mesh_shape.all()).barrier();  // before the next one replaces it
          }
        if (shape.dims()) load_npy(folder / "whole.npy", mesh, "a=Shard(-1)");
      });
    }
  }
  auto recorded = Rank::recorded(4);
  DistributedTensor meta = load_npy(data + "c_order.npy", DeviceMesh(*recorded, "tp=4"), "tp=Shard(0)");
  CHECK((meta.is_meta() && to_string(meta) == "f32[2,3] tp=Shard(0)"));
  CHECK(error_of([&] { save_npy(folder / "meta.npy", meta); }) ==
        "[save_npy] " + (folder / "meta.npy") + ": a meta tensor has no value");
}

TEST_CASE("law 9: files that are no arrays are errors") {
  Folder folder;
  std::string path = folder / "bad.npy", good = contents(data + "c_order.npy"), eight(8, '\0');
  auto one = [&](const std::string& dictionary) { return file_of(dictionary, eight); };
  auto with = [&](size_t at, char c) {
    std::string changed = good;
    changed[at] = c;
    return changed;
  };
  struct Case {
    std::string bytes, error;
  };
  for (const Case& c : std::vector<Case>{
           {"", "too short for an .npy file"},
           {good.substr(0, 9), "too short for an .npy file"},
           {with(0, 'x'), "no .npy file"},
           {with(6, 4), "version 4 of the format is not supported"},
           {good.substr(0, 100), "a header of 118 bytes in a file of 100"},
           {good.substr(0, 140), "f32[2,3] needs 24 bytes after the header, but there are 12"},
           {good + "x", "f32[2,3] needs 24 bytes after the header, but there are 25"},
           {one("[1]"), "in the header: no dictionary"},
           {one("{1: 2}"), "in the header: no key"},
           {one("{'descr"), "in the header: no key"},
           {one("{'descr' '<i8'}"), "in the header: no key"},
           {one("{'descr': [('a', '<i8')]}"), "in the header: a structured \"descr\" is not supported"},
           {one("{'descr': '<i8' 'shape': ()}"), "in the header: no comma after a value"},
           {one("{'fortran_order': 1}"), "in the header: \"fortran_order\" is neither True nor False"},
           {one("{'order': 'C'}"), "in the header: an unknown key \"order\""},
           {one("{'shape': [1]}"), "in the header: \"shape\" is no tuple"},
           {one("{'shape': (1 2)}"), "in the header: \"shape\" is no tuple"},
           {one("{'shape': (-1,)}"), "in the header: a size in \"shape\" is no number from 0 on"},
           {one("{'shape': (1,"), "in the header: a size in \"shape\" is no number from 0 on"},
           {one("{'shape': (1,1,1,1,1,1,1,1,1)}"), "in the header: more than 8 dimensions"},
           {one("{} x"), "in the header: text after the dictionary"},
           {one("{}"), "in the header: no \"descr\""},
           {one("{'descr': '<i8'}"), "in the header: no \"fortran_order\""},
           {one("{'descr': '<i8', 'fortran_order': False}"), "in the header: no \"shape\""},
           {one("{'descr': '>i8', 'fortran_order': False, 'shape': ()}"),
            ">i8 is big-endian: save it with a.astype(a.dtype.newbyteorder('<'))"},
           {one("{'descr': '<f2', 'fortran_order': False, 'shape': (4,)}"),
            "element type <f2 is not supported: <f4, <f8, <i8 and |b1 are; convert with a.astype()"},
           {one("{'descr': '<i8', 'fortran_order': False, 'shape': (4294967296, 4294967296)}"),
            "a shape of more bytes than there can be"},
           {file_of("{'descr': '|b1', 'fortran_order': False, 'shape': (2,)}", "\1\2"),
            "a bool that is neither 0 nor 1"},
       }) {
    write(path, c.bytes);
    CHECK(error_of([&] { load_npy(path); }) == "[load_npy] " + path + ": " + c.error);
  }
  // Whatever byte of the header is wrong, the answer is an error or a tensor.
  for (size_t at = 0; at < 128; ++at)
    for (int c : {0, 39, 40, 123, 255}) {
      write(path, with(at, char(c)));
      error_of([&] { load_npy(path); });
    }
  CHECK(error_of([&] { load_npy(folder / "none.npy"); }) == "[load_npy] " + (folder / "none.npy") + ": cannot be read");
  CHECK(error_of([&] { load_npy(folder.path.string()); }) == "[load_npy] " + folder.path.string() + ": cannot be read");
  CHECK(error_of([&] { save_npy(folder / "no/x.npy", Tensor::of<bool>({1}, {true})); }) ==
        "[save_npy] " + (folder / "no/x.npy") + ": cannot be written");
  CHECK(error_of([&] { save_npy(path, Tensor(std::make_shared<Allocator>(), DType::bf16, {1})); }) ==
        "[save_npy] NumPy has no bf16: cast to f32 first");
  CHECK(error_of([&] { save_npy(path, Tensor(std::make_shared<Allocator>(), DType::f32, {1}, Device::meta)); }) ==
        "[save_npy] " + path + ": a meta tensor has no value");
}
