// The regular expressions of tokenizer files, in PCRE2's dialect.
#pragma once

#include <string>
#include <string_view>

namespace dtensor::nn {

// The tokenizers package matches by Oniguruma. What that reads otherwise than PCRE2 is rewritten: `\w`, `\b`, `\s`,
// `\h` and POSIX classes, which know other characters; sets in sets and their intersections; `(?m)`, by which a dot
// matches a new line; `\uHHHH`, `\v`, `\O` and `{,n}`. To be compiled with PCRE2_MULTILINE, since ^ and $ always match
// at lines. What neither knows is left to PCRE2 to refuse. Errors: sets more than 50 deep.
// Source: Oniguruma's doc/RE and its classes of Unicode.
std::string pcre2_from_oniguruma(std::string_view pattern);

}  // namespace dtensor::nn
