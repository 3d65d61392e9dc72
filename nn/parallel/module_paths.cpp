#include "nn/parallel/module_paths.h"

#include <fmt/format.h>
#include <map>
#include <set>

#include "nn/parallel/json_place.h"
#include "placement/nearest.h"

namespace dtensor::nn {

namespace {

bool matches_segment(std::string_view pattern, std::string_view segment) {
  size_t star = pattern.find('*');
  if (star == std::string_view::npos) return pattern == segment;
  if (segment.substr(0, star) != pattern.substr(0, star)) return false;
  std::string_view rest = pattern.substr(star + 1);
  for (size_t at = star; at <= segment.size(); ++at)
    if (matches_segment(rest, segment.substr(at))) return true;
  return false;
}

}  // namespace

bool matches(std::string_view pattern, std::string_view path) {
  while (true) {
    size_t a = std::min(pattern.find('.'), pattern.size()), b = std::min(path.find('.'), path.size());
    if (!matches_segment(pattern.substr(0, a), path.substr(0, b))) return false;
    if (a == pattern.size() || b == path.size()) return a == pattern.size() && b == path.size();
    pattern.remove_prefix(a + 1), path.remove_prefix(b + 1);
  }
}

std::string like_modules(std::string_view path) {
  std::string name(path);
  for (size_t i = 0, end; i < name.size(); i = end + 1) {
    end = std::min(name.find('.', i), name.size());
    if (name.find_first_not_of("0123456789", i) >= end) name.replace(i, end - i, 1, '*'), end = i + 1;
  }
  return name;
}

std::vector<Module*> find_modules(Module& model, const std::string& pattern, const char* place) {
  std::vector<Module*> found;
  std::vector<std::string> names;
  for (Module* m : model.modules()) {
    if (matches(pattern, m->path())) found.push_back(m);
    if (m->path().empty()) continue;
    names.push_back(pattern.find('*') == std::string::npos ? m->path() : like_modules(m->path()));
  }
  if (!found.empty()) return found;
  // A name that only goes on, as g_norm_swish_gate after g_norm, is nearer than any other.
  auto longer = std::find_if(names.begin(), names.end(), [&](const auto& n) { return n.starts_with(pattern + "_"); });
  fail("[plan] {}: \"{}\" matches no module{}", place, pattern,
       longer == names.end() ? nearest_hint(pattern, names) : fmt::format("; the nearest is \"{}\"", *longer));
}

std::vector<Module*> find_modules(Module& model, const std::vector<std::string>& patterns, const char* place) {
  std::vector<Module*> list;
  for (const std::string& pattern : patterns)
    for (Module* m : find_modules(model, pattern, place)) {
      check(std::find(list.begin(), list.end(), m) == list.end(), "[plan] {}: module \"{}\" is named twice", place,
            m->path());
      list.push_back(m);
    }
  return list;
}

std::vector<std::string> left_out(Module& model, const std::vector<std::string>& patterns, const char* place) {
  std::set<Module*> matched;
  for (const std::string& pattern : patterns)
    for (Module* m : find_modules(model, pattern, place)) matched.insert(m);
  std::map<std::string, std::vector<std::string>> others;  // that are not matched, by the pattern of like modules
  for (Module* m : model.modules())
    if (!matched.contains(m)) others[like_modules(m->path())].push_back(m->path());
  std::vector<std::string> list;
  for (const std::string& pattern : patterns) {
    std::set<std::string> kinds;
    for (Module* m : find_modules(model, pattern, place)) kinds.insert(like_modules(m->path()));
    for (const std::string& kind : kinds) {
      auto it = others.find(kind);
      if (it == others.end()) continue;
      size_t n = it->second.size();
      std::string rest = n > 1 ? fmt::format(" and {} more, which are", n - 1) : ", which is";
      list.push_back(fmt::format("{}.{}: leaves out {}{} like what it matches: name \"{}\" for all of them", place,
                                 quoted(pattern), it->second[0], rest, kind));
    }
  }
  return list;
}

}  // namespace dtensor::nn
