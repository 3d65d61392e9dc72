// Text files to documents.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace dtensor::nn {

// f(document) for each document of a file, in order: a file of JSON lines (.jsonl) has one per line, its "text"; any
// other file is one. Both may be compressed (.gz, .zst). JSON lines are read in pieces, so memory holds one document;
// plain text is mapped, so it holds none; compressed text is held whole.
// Errors: a file that cannot be read or is cut short; a line that is no JSON object with a text, by its number.
void for_documents(const std::string& file, const std::function<void(std::string_view)>& f);

}  // namespace dtensor::nn
