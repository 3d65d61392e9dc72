// CRC-32C: the checksum of checkpoints' bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace dtensor::nn {

// Of iSCSI, ext4 and others (Castagnoli's polynomial, RFC 3720): "123456789" gives e3069283. `before` is the checksum
// of the bytes that come before: crc32c(b, crc32c(a)) is that of a and b. By the processor's instruction where it has
// one.
uint32_t crc32c(std::span<const std::byte> bytes, uint32_t before = 0);

}  // namespace dtensor::nn
