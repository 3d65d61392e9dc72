#include "nn/foresight/hardware.h"

#include <fmt/format.h>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "nn/foresight/known_hardware.h"
#include "nn/json.h"
#include "placement/nearest.h"

namespace dtensor::nn {
namespace {

using Json = nlohmann::ordered_json;

// An object of a hardware file and where it stands.
class Reader {
 public:
  Reader(const Json& json, std::string path, const std::vector<std::string>& fields)
      : json_(json), path_(std::move(path)) {
    check(json.is_object(), "[Hardware] {} is {}, not an object", path_.empty() ? "the file" : path_, json.dump());
    for (const auto& [key, value] : json.items())
      check(std::ranges::find(fields, key) != fields.end(), "[Hardware] there is no field \"{}\"{}", name(key),
            nearest_hint(key, fields));
  }
  std::string name(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }
  bool has(const char* key) const { return json_.contains(key); }
  const Json& at(const char* key) const {
    check(has(key), "[Hardware] \"{}\" is missing", name(key));
    return json_[key];
  }
  double positive(const char* key) const {
    const Json& v = at(key);
    double number = v.is_number() ? v.get<double>() : 0;
    check(number > 0 && std::isfinite(number), "[Hardware] {} is {}, not a number above 0", name(key), v.dump());
    return number;
  }
  bool flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    check(at(key).is_boolean(), "[Hardware] {} is {}, not true or false", name(key), at(key).dump());
    return at(key).get<bool>();
  }
  double seconds(const char* key) const { return has(key) && at(key) == 0 ? 0 : positive(key); }
  double share(const char* key) const {
    double s = positive(key);
    check(s <= 1, "[Hardware] {} is {}, more than all", name(key), s);
    return s;
  }
  Rate rate(const char* key) const {
    Reader r(at(key), name(key), {"seconds", "per_second"});
    return {r.seconds("seconds"), r.positive("per_second")};
  }

 private:
  const Json& json_;
  std::string path_;
};

const std::vector<std::pair<const char*, DType>> types = {
    {"fp32", DType::f32}, {"bf16", DType::bf16}, {"fp64", DType::f64}};

Json rate_json(const Rate& r) { return {{"seconds", r.seconds}, {"per_second", r.per_second}}; }

std::map<int, double> by_ranks(const Reader& r, const char* key, const char* what) {
  std::map<int, double> list;
  if (!r.has(key)) return list;
  check(r.at(key).is_object(), "[Hardware] {} is {}, not an object", key, r.at(key).dump());
  for (const auto& [ranks, value] : r.at(key).items()) {
    char* end = nullptr;
    long n = std::strtol(ranks.c_str(), &end, 10);
    double v = value.is_number() ? value.get<double>() : -1;
    bool is_factor = std::string_view(key) == "slowdowns";
    check(n > 0 && n <= 1 << 24 && !*end && std::isfinite(v) && (is_factor ? v > 0 : v >= 0),
          "[Hardware] {}.{} is {}; a number of ranks, and {}", key, ranks, value.dump(), what);
    list[int(n)] = v;
  }
  return list;
}

// Between two numbers of ranks on a line, beyond the last in proportion.
double at_ranks(const std::map<int, double>& list, int ranks) {
  auto above = list.lower_bound(ranks);
  if (above == list.end()) return list.rbegin()->second * ranks / list.rbegin()->first;
  if (above == list.begin()) return above->second;
  auto below = std::prev(above);
  double at = double(ranks - below->first) / (above->first - below->first);
  return below->second + at * (above->second - below->second);
}

// Between two sizes, on a straight line over the logarithm of the size.
double share_at(const std::map<int64_t, double>& shares, int64_t size) {
  auto above = shares.lower_bound(size);
  if (above == shares.end()) return shares.rbegin()->second;
  if (above == shares.begin()) return above->second * double(std::max(size, int64_t(1))) / double(above->first);
  auto below = std::prev(above);
  double at = std::log(double(size) / double(below->first)) / std::log(double(above->first) / double(below->first));
  return below->second + at * (above->second - below->second);
}

}  // namespace

Hardware Hardware::load(const std::string& file_or_name) {
  std::string name = file_or_name.ends_with(".json") ? file_or_name.substr(0, file_or_name.size() - 5) : file_or_name;
  std::vector<std::string> names;
  for (const KnownHardware& k : known_hardware()) {
    if (k.name == name && !std::filesystem::exists(file_or_name))
      return from_json(parse_json(k.json, fmt::format("{}.json", name), "Hardware"));
    names.emplace_back(k.name);
  }
  check(std::filesystem::is_regular_file(file_or_name),
        "[Hardware] \"{}\" is neither a file nor one of {}; dtensor_calibrate writes this machine's", file_or_name,
        fmt::join(names, ", "));
  try {
    return from_json(load_json(file_or_name, "Hardware"));
  } catch (const Error& e) {
    std::string what = e.what();
    if (what.find(file_or_name) != what.npos) throw;
    fail("{} (in {})", what, file_or_name);
  }
}

Hardware Hardware::from_json(const Json& json) {
  Reader r(json, "",
           {"name",
            "sources",
            "memory_bytes",
            "flops_per_second",
            "product_shares",
            "attention_share",
            "attention_backward_share",
            "bytes_per_second",
            "call_seconds",
            "host_seconds",
            "host_waits",
            "overlaps",
            "cores",
            "slowdowns",
            "waits",
            "ops",
            "node_devices",
            "inside_node",
            "between_nodes",
            "host_link",
            "host_bytes_per_second"});
  Hardware h;
  check(r.at("name").is_string(), "[Hardware] name is {}, not a text", r.at("name").dump());
  h.name = r.at("name").get<std::string>();
  h.memory_bytes = int64_t(r.positive("memory_bytes"));
  Reader flops(r.at("flops_per_second"), "flops_per_second", {"fp32", "bf16", "fp64"});
  for (const auto& [key, type] : types)
    if (flops.has(key)) h.flops[type] = flops.positive(key);
  check(!h.flops.empty(), "[Hardware] flops_per_second is empty: give fp32, bf16 or fp64");
  const Json& shares = r.at("product_shares");
  check(shares.is_object() && !shares.empty(),
        "[Hardware] product_shares is {}; give shares by the least size, as {{\"128\": 0.3, \"4096\": 0.7}}",
        shares.dump());
  for (const auto& [size, share] : shares.items()) {
    char* end = nullptr;
    long long n = std::strtoll(size.c_str(), &end, 10);
    double s = share.is_number() ? share.get<double>() : 0;
    check(n > 0 && !*end && s > 0 && s <= 1, "[Hardware] product_shares.{} is {}; a size, and a share from 0 to 1",
          size, share.dump());
    h.product_shares[n] = s;
  }
  h.attention_share = r.share("attention_share");
  h.attention_backward_share = r.share("attention_backward_share");
  h.bytes_per_second = r.positive("bytes_per_second");
  h.call_seconds = r.seconds("call_seconds");
  h.host_seconds = r.seconds("host_seconds");
  h.host_waits = r.flag("host_waits", false);
  h.overlaps = r.flag("overlaps", true);
  if (r.has("cores")) h.cores = int(r.positive("cores"));
  h.slowdowns = by_ranks(r, "slowdowns", "a factor above 0");
  h.waits = by_ranks(r, "waits", "seconds from 0 on");
  if (r.has("ops")) {
    std::vector<std::string> names;
    check(r.at("ops").is_object(), "[Hardware] ops is {}, not an object", r.at("ops").dump());
    for (const auto& [op, rate] : r.at("ops").items()) names.push_back(op);
    Reader ops(r.at("ops"), "ops", names);
    for (const std::string& op : names) h.ops[op] = ops.rate(op.c_str());
  }
  h.node_devices = int(r.positive("node_devices"));
  h.inside = r.rate("inside_node");
  h.between = r.rate("between_nodes");
  if (r.has("host_link")) h.host_link = r.rate("host_link");
  if (r.has("host_bytes_per_second")) h.host_bytes_per_second = r.positive("host_bytes_per_second");
  return h;
}

Json Hardware::to_json() const {
  Json flops_json = Json::object(), shares = Json::object(), ops_json = Json::object();
  for (const auto& [key, type] : types)
    if (flops.contains(type)) flops_json[key] = flops.at(type);
  for (const auto& [size, share] : product_shares) shares[std::to_string(size)] = share;
  for (const auto& [op, rate] : ops) ops_json[op] = rate_json(rate);
  Json j{{"name", name},
         {"memory_bytes", memory_bytes},
         {"flops_per_second", flops_json},
         {"product_shares", shares},
         {"attention_share", attention_share},
         {"attention_backward_share", attention_backward_share},
         {"bytes_per_second", bytes_per_second},
         {"call_seconds", call_seconds},
         {"host_seconds", host_seconds},
         {"host_waits", host_waits},
         {"overlaps", overlaps}};
  if (cores) j["cores"] = cores;
  for (const auto& [ranks, factor] : slowdowns) j["slowdowns"][std::to_string(ranks)] = factor;
  for (const auto& [ranks, seconds] : waits) j["waits"][std::to_string(ranks)] = seconds;
  if (!ops.empty()) j["ops"] = ops_json;
  j["node_devices"] = node_devices;
  j["inside_node"] = rate_json(inside);
  j["between_nodes"] = rate_json(between);
  if (host_link.per_second > 0) j["host_link"] = rate_json(host_link);
  if (host_bytes_per_second > 0) j["host_bytes_per_second"] = host_bytes_per_second;
  return j;
}

double Hardware::peak(DType dtype) const {
  auto it = flops.find(dtype);
  check(it != flops.end(), "[Hardware] {} says no flops_per_second of {}: add it, or compute in another type", name,
        dtensor::name(dtype));
  return it->second;
}

double Hardware::product(std::string_view op, DType dtype, double operations, int64_t least) const {
  if (auto it = ops.find(op); it != ops.end()) return it->second.of(operations);
  return call_seconds + operations / (peak(dtype) * share_at(product_shares, least));
}

double Hardware::attention(std::string_view op, DType dtype, double operations, double scores, bool backward) const {
  double products = operations / (peak(dtype) * (backward ? attention_backward_share : attention_share));
  auto it = ops.find(op);
  return products + (it != ops.end() ? it->second.of(scores) : call_seconds);
}

double Hardware::memory_bound(std::string_view op, double bytes) const {
  if (auto it = ops.find(op); it != ops.end()) return it->second.of(bytes);
  return call_seconds + bytes / bytes_per_second;
}

// A ring passes through each node once, and over as many outside links as the node has ranks of the group.
double Hardware::collective(int64_t bytes, const Peers& p) const {
  if (p.ranks <= 1) return 0;
  int inside_steps = (p.ranks + p.nodes - 1) / p.nodes - 1, between_steps = p.nodes - 1;
  double per_second = inside_steps > 0 ? inside.per_second : between.per_second;
  if (p.nodes > 1) per_second = std::min(per_second, between.per_second * double(p.ranks) / p.nodes);
  // Rings of many ranks are cut into trees: their steps grow with the logarithm.
  double wait = inside.seconds * std::log2(1.0 + inside_steps) + between.seconds * std::log2(1.0 + between_steps);
  return wait + double(bytes) / per_second;
}

double Hardware::copy(double bytes) const { return host_link.per_second > 0 ? host_link.of(bytes) : 0; }

double Hardware::on_host(std::string_view op, double bytes) const {
  return host_bytes_per_second > 0 ? bytes / host_bytes_per_second : memory_bound(op, bytes);
}

double Hardware::slowdown(int ranks) const {
  if (slowdowns.empty()) return cores ? std::max(1.0, double(ranks) / cores) : 1.0;
  return at_ranks(slowdowns, ranks);
}

double Hardware::wait(int ranks) const { return waits.empty() ? 0 : at_ranks(waits, ranks); }

Peers Hardware::peers(const MeshShape& mesh, AxisSet axes) const {
  Peers p{mesh.product(axes), 1};
  if (p.ranks <= 1) return p;
  // Ranks of an axis are `stride` apart; an axis lies inside a node as far as stride * size fits there.
  int stride = 1;
  int inside = 1;
  for (int a = mesh.axes() - 1; a >= 0; --a) {
    if (has(axes, a)) inside *= std::clamp(node_devices / stride, 1, mesh.size(a));
    stride *= mesh.size(a);
  }
  p.nodes = (p.ranks + inside - 1) / inside;
  return p;
}

}  // namespace dtensor::nn
