#include "dtensor/npy.h"

#include <fmt/format.h>
#include <unistd.h>

#include <bit>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <optional>
#include <thread>

#include "dtensor/local/runs.h"
#include "dtensor/redistribute.h"

namespace dtensor {
namespace {

static_assert(std::endian::native == std::endian::little, "elements are written as they are in memory");

constexpr std::string_view magic = "\x93NUMPY";

struct Type {
  DType dtype;
  std::string_view code;
};
constexpr Type types[] = {{DType::f32, "<f4"}, {DType::f64, "<f8"}, {DType::i64, "<i8"}, {DType::boolean, "|b1"}};

// The header's dictionary, {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }: a Python literal of strings,
// booleans and one tuple of integers.
class Dictionary {
 public:
  explicit Dictionary(std::string_view text) : rest_(text) {}

  std::optional<std::string_view> descr;
  std::optional<bool> fortran;
  std::optional<Shape> shape;

  // What is wrong, or "".
  std::string parse() {
    if (!take("{")) return "no dictionary";
    while (!take("}")) {
      auto key = string();
      if (!key || !take(":")) return "no key";
      if (*key == "descr") {
        if (!(descr = string())) return "a structured \"descr\" is not supported";
      } else if (*key == "fortran_order") {
        fortran = take("True") ? std::optional(true) : take("False") ? std::optional(false) : std::nullopt;
        if (!fortran) return "\"fortran_order\" is neither True nor False";
      } else if (*key == "shape") {
        if (std::string error = tuple(); !error.empty()) return error;
      } else {
        return fmt::format("an unknown key \"{}\"", *key);
      }
      if (!take(",") && !peek('}')) return "no comma after a value";
    }
    skip_space();
    if (!rest_.empty()) return "text after the dictionary";
    return !descr ? "no \"descr\"" : !fortran ? "no \"fortran_order\"" : !shape ? "no \"shape\"" : "";
  }

 private:
  void skip_space() { rest_.remove_prefix(std::min(rest_.find_first_not_of(" \n"), rest_.size())); }
  bool peek(char c) { return skip_space(), rest_.starts_with(c); }
  bool take(std::string_view word) {
    skip_space();
    if (!rest_.starts_with(word)) return false;
    rest_.remove_prefix(word.size());
    return true;
  }
  std::optional<std::string_view> string() {
    if (!peek('\'') && !peek('"')) return {};
    size_t end = rest_.find(rest_[0], 1);
    if (end == std::string_view::npos) return {};
    std::string_view inside = rest_.substr(1, end - 1);
    rest_.remove_prefix(end + 1);
    return inside;
  }
  std::string tuple() {
    shape.emplace();
    if (!take("(")) return "\"shape\" is no tuple";
    while (!take(")")) {
      int64_t n = -1;
      skip_space();
      auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), n);
      if (error != std::errc() || n < 0) return "a size in \"shape\" is no number from 0 on";
      if (shape->dims() == max_dims) return fmt::format("more than {} dimensions", max_dims);
      shape->push_back(n);
      rest_.remove_prefix(size_t(end - rest_.data()));
      if (!take(",") && !peek(')')) return "\"shape\" is no tuple";
    }
    return "";
  }

  std::string_view rest_;
};

// An .npy file whose header has been read and found to fit its size.
class NpyFile {
 public:
  explicit NpyFile(const std::string& path) : path_(path), in_(path, std::ios::binary) {
    std::error_code error;
    size_ = int64_t(std::filesystem::file_size(path, error));
    check(!error && in_, "[load_npy] {}: cannot be read", path);
    read_header(header_text());
    int64_t bytes = itemsize(dtype);
    for (int64_t n : shape)
      require(!__builtin_mul_overflow(bytes, n, &bytes), "a shape of more bytes than there can be");
    require(size_ - start_ == bytes, fmt::format("{}{} needs {} bytes after the header, but there are {}", name(dtype),
                                                 to_string(shape), bytes, size_ - start_));
  }

  DType dtype = DType::f32;
  Shape shape;

  // Reads what the box holds into a contiguous tensor of its shape.
  void read(const Box& box, const Tensor& to) {
    if (!fortran_) return read_rows(shape, box, to);
    // Fortran's order is C's of the dimensions reversed.
    Box reversed = box;
    std::reverse(reversed.range.begin(), reversed.range.begin() + box.dims);
    Tensor rows(to.allocator(), dtype, reversed.shape());
    read_rows({std::make_reverse_iterator(shape.end()), std::make_reverse_iterator(shape.begin())}, reversed, rows);
    std::vector<int> order(shape.size());
    std::iota(order.rbegin(), order.rend(), 0);
    copy(rows.permute(order), to);
  }

 private:
  void require(bool ok, std::string_view what) const { check(ok, "[load_npy] {}: {}", path_, what); }

  void read_bytes(int64_t at, std::byte* to, int64_t n) {
    in_.seekg(at);
    in_.read(reinterpret_cast<char*>(to), n);
    require(bool(in_), "cannot be read");
  }

  std::string header_text() {
    unsigned char first[12] = {};
    int64_t prefix = 10;
    require(size_ >= prefix, "too short for an .npy file");
    read_bytes(0, reinterpret_cast<std::byte*>(first), std::min<int64_t>(size_, 12));
    require(std::equal(magic.begin(), magic.end(), reinterpret_cast<const char*>(first)), "no .npy file");
    int version = first[6];
    require(version >= 1 && version <= 3, fmt::format("version {} of the format is not supported", version));
    int64_t length = first[8] | first[9] << 8;
    if (version > 1) prefix = 12, length |= int64_t(first[10]) << 16 | int64_t(first[11]) << 24;
    start_ = prefix + length;
    require(start_ <= size_, fmt::format("a header of {} bytes in a file of {}", length, size_));
    std::string text(static_cast<size_t>(length), '\0');
    read_bytes(prefix, reinterpret_cast<std::byte*>(text.data()), length);
    return text;
  }

  void read_header(const std::string& text) {
    Dictionary d(text);
    std::string error = d.parse();
    require(error.empty(), "in the header: " + error);
    auto known = std::find_if(std::begin(types), std::end(types), [&](const Type& t) { return t.code == *d.descr; });
    require(!d.descr->starts_with('>'),
            fmt::format("{} is big-endian: save it with a.astype(a.dtype.newbyteorder('<'))", *d.descr));
    require(
        known != std::end(types),
        fmt::format("element type {} is not supported: <f4, <f8, <i8 and |b1 are; convert with a.astype()", *d.descr));
    dtype = known->dtype, shape = *d.shape, fortran_ = *d.fortran;
  }

  void read_rows(const Shape& whole, const Box& box, const Tensor& to) {
    int64_t item = itemsize(dtype);
    for_each_run(whole, box, [&](int64_t local, int64_t global, int64_t n) {
      read_bytes(start_ + global * item, to.bytes_data() + local * item, n * item);
    });
    if (dtype == DType::boolean)  // any other byte in a bool is undefined behaviour
      require(std::all_of(to.bytes_data(), to.bytes_data() + to.bytes(), [](std::byte b) { return b <= std::byte(1); }),
              "a bool that is neither 0 nor 1");
  }

  std::string path_;
  std::ifstream in_;
  int64_t size_ = 0, start_ = 0;
  bool fortran_ = false;
};

std::string header_of(const Tensor& t) {
  auto type = std::find_if(std::begin(types), std::end(types), [&](const Type& k) { return k.dtype == t.dtype(); });
  if (type == std::end(types)) fail("[save_npy] NumPy has no {}: cast to f32 first", name(t.dtype()));
  std::string dictionary = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}", type->code,
                                       fmt::join(t.shape().begin(), t.shape().end(), ", "), t.dims() == 1 ? "," : "");
  constexpr size_t prefix = 10, alignment = 64;  // so that elements are aligned where the file is mapped
  dictionary.append(alignment - 1 - (prefix + dictionary.size()) % alignment, ' ') += '\n';
  std::string header(magic);
  for (size_t byte : {size_t(1), size_t(0), dictionary.size() & 255, dictionary.size() >> 8}) header += char(byte);
  return header + dictionary;
}

}  // namespace

void save_npy(const std::string& path, const Tensor& t) {
  if (t.device() == Device::meta) fail("[save_npy] {}: a meta tensor has no value", path);
  std::string header = header_of(t);
  Tensor whole = t.contiguous().cpu();
  // No other thread or process writes under this name.
  std::string beside =
      fmt::format("{}.{}-{:x}.tmp", path, getpid(), std::hash<std::thread::id>()(std::this_thread::get_id()));
  std::ofstream out(beside, std::ios::binary);
  out << header;
  out.write(reinterpret_cast<const char*>(whole.bytes_data()), whole.bytes());
  out.close();
  std::error_code error;
  if (out) std::filesystem::rename(beside, path, error);
  if (out && !error) return;
  std::filesystem::remove(beside, error);
  fail("[save_npy] {}: cannot be written", path);
}

void save_npy(const std::string& path, const DistributedTensor& x) {
  if (x.is_meta()) fail("[save_npy] {}: a meta tensor has no value", path);
  NoGrad scope(x.mesh().rank_state());
  Tensor whole = x.redistribute(Layout(), {.reason = "save_npy"}).local();
  if (x.mesh().rank() == 0) save_npy(path, whole);
  x.mesh().communicator(x.mesh().shape().all()).barrier();
}

Tensor load_npy(const std::string& path) {
  NpyFile file(path);
  Tensor t(std::make_shared<Allocator>(), file.dtype, file.shape);
  file.read(whole_box(file.shape), t);
  return t;
}

DistributedTensor load_npy(const std::string& path, const DeviceMesh& mesh, const Layout& layout) {
  NpyFile file(path);
  DistributedTensor x = DistributedTensor::empty(mesh, {file.dtype, file.shape, layout});
  if (x.is_meta()) return x;
  if (keeps_value(mesh.shape(), mesh.rank(), x.layout().partial, x.layout().reduce))
    write_on_host(x.local(), [&](const Tensor& part) { file.read(x.spec().box, part); });
  else
    fill_identity(x.local(), x.layout().reduce);
  return x;
}

DistributedTensor load_npy(const std::string& path, const DeviceMesh& mesh, std::string_view layout) {
  return load_npy(path, mesh, parse_layout(layout, mesh.shape(), NpyFile(path).shape.dims()));
}

}  // namespace dtensor
