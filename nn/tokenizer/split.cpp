#define PCRE2_CODE_UNIT_WIDTH 8
#include "nn/tokenizer/split.h"

#include <pcre2.h>

#include "nn/tokenizer/dialect.h"
#include "placement/error.h"

namespace dtensor::nn {
namespace {

struct Named {
  KnownPattern pattern;
  std::string_view name, regex;
};
constexpr Named known[] = {
    {KnownPattern::gpt2, "gpt2", R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"},
    {KnownPattern::llama3, "llama3",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
    {KnownPattern::qwen, "qwen",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
};

std::string message_of(int error) {
  unsigned char text[256];
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

KnownPattern pattern_by_name(std::string_view name) {
  for (const Named& n : known)
    if (n.name == name) return n.pattern;
  fail("[tokenizer] there is no pattern \"{}\": gpt2, llama3 and qwen are known", name);
}

std::string_view regex_of(KnownPattern pattern) { return known[size_t(pattern)].regex; }

std::optional<KnownPattern> known_pattern(std::string_view regex) {
  for (const Named& n : known)
    if (n.regex == regex) return n.pattern;
  return std::nullopt;
}

Regex::Regex(std::string_view pattern) : pattern_(pattern) {
  int error;
  size_t place;
  const std::string ours = pcre2_from_oniguruma(pattern_);
  std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(ours.data()), ours.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &place, context.get());
  check(code != nullptr, "[tokenizer] {} is no regular expression: {} at byte {} of {}", pattern_,
        code ? "" : message_of(error), place, ours);
  code_ = std::shared_ptr<void>(code, [](void* c) { pcre2_code_free(static_cast<pcre2_code*>(c)); });
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where it cannot, pcre2_match interprets
}

void Regex::for_matches(std::string_view text, const std::function<void(size_t, size_t)>& f) const {
  auto* code = static_cast<pcre2_code*>(code_.get());
  std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> match(
      pcre2_match_data_create_from_pattern(code, nullptr), pcre2_match_data_free);
  for (size_t at = 0; at <= text.size();) {
    auto find = [&](uint32_t options) {
      return pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                         PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY | options, match.get(), nullptr);
    };
    int found = find(0);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = find(PCRE2_NO_JIT);
    if (found == PCRE2_ERROR_NOMATCH) return;
    if (found < 0) fail("[tokenizer] cannot match {}: {}", pattern_, message_of(found));
    const size_t* range = pcre2_get_ovector_pointer(match.get());
    f(range[0], range[1]);
    at = range[1];
  }
}

}  // namespace dtensor::nn
