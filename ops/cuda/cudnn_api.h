// The part of cuDNN that is used here, as a table of functions found at run time: the library is built without cuDNN
// and starts where it is missing. Names, numbers and layouts are those of cudnn_graph.h 9
// (tests/cudnn/api_test.cpp compares them where that header is found).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "dtensor/cuda/runtime.h"
#include "dtensor/shared_library.h"

namespace dtensor::cuda::cudnn {

struct Context;  // what a cudnnHandle_t points to
using Handle = Context*;
using BackendDescriptor = void*;

enum class Status : int {};
enum class DataType : int {};
enum class PointwiseMode : int {};
enum class ReduceTensorOp : int {};
enum class HeurMode : int {};
enum class NumericalNote : int {};
enum class DescriptorType : int {};
enum class AttributeName : int {};
enum class AttributeType : int {};
#define CUDNN(type, name, number) constexpr type name{number};
#include "ops/cuda/cudnn_constants.inc"
#undef CUDNN
constexpr int most_numerical_notes = 32;  // more than there are

// A name of a member is that of cuDNN's function without "cudnn". A handle is used by one thread at a time.
struct Api {
  std::string path;    // the library's
  size_t version = 0;  // 91900: 9.19.0
  size_t (*GetVersion)() = nullptr;
  const char* (*GetErrorString)(Status) = nullptr;
  void (*GetLastErrorString)(char* message, size_t size) = nullptr;
  Status (*Create)(Handle*) = nullptr;
  Status (*Destroy)(Handle) = nullptr;
  Status (*SetStream)(Handle, StreamHandle) = nullptr;
  Status (*BackendCreateDescriptor)(DescriptorType, BackendDescriptor*) = nullptr;
  Status (*BackendDestroyDescriptor)(BackendDescriptor) = nullptr;
  Status (*BackendSetAttribute)(BackendDescriptor, AttributeName, AttributeType, int64_t count,
                                const void* values) = nullptr;
  Status (*BackendGetAttribute)(BackendDescriptor, AttributeName, AttributeType, int64_t room, int64_t* count,
                                void* values) = nullptr;
  Status (*BackendFinalize)(BackendDescriptor) = nullptr;
  Status (*BackendExecute)(Handle, BackendDescriptor plan, BackendDescriptor values) = nullptr;
};

constexpr size_t oldest_version = 91600;

// The newest libcudnn.so.9 of the folders. Errors: there is none; the newest is older than 9.16, with its path; it
// cannot be loaded.
Api load(const std::vector<std::string>& folders = library_folders());

// 91900, for 9.19.0, of a library, by its file's name or by ../include/cudnn_version.h, or 0 where neither tells.
size_t version_of(const std::string& path);

}  // namespace dtensor::cuda::cudnn
