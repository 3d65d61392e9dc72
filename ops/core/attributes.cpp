#include "ops/core/attributes.h"

namespace dtensor {

void Attributes::set(std::string_view name, const NamedValue& value) {
  check(type_ && type_->assign(bytes_, name, value), "[Attributes::set] \"{}={}\" does not fit into \"{}\"", name,
        dtensor::to_string(value), to_string());
}

void Attributes::fail_type() const {
  fail("[Attributes] the call has {}, which is not what the op takes",
       type_ ? "\"" + to_string() + "\"" : std::string("no attributes"));
}

}  // namespace dtensor
