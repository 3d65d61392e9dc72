#include "nn/parallel/module_paths.h"

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

std::vector<Module*> find_modules(Module& model, const std::string& pattern, const char* place) {
  std::vector<Module*> found;
  std::vector<std::string> names;
  for (Module* m : model.modules()) {
    if (matches(pattern, m->path())) found.push_back(m);
    if (m->path().empty()) continue;
    std::string& name = names.emplace_back(m->path());
    if (pattern.find('*') == std::string::npos) continue;
    for (size_t i = 0, end; i < name.size(); i = end + 1) {  // as a pattern, where the mistyped one is
      end = std::min(name.find('.', i), name.size());
      if (name.find_first_not_of("0123456789", i) >= end) name.replace(i, end - i, 1, '*'), end = i + 1;
    }
  }
  if (found.empty()) fail("[plan] {}: \"{}\" matches no module{}", place, pattern, nearest_hint(pattern, names));
  return found;
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

}  // namespace dtensor::nn
