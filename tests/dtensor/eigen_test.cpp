#include "dtensor/eigen.h"

#include <catch2/catch.hpp>

#include "tests/dtensor/ranks.h"

using namespace dtensor;
using namespace dtensor::testing;

TEST_CASE("Eigen maps share the elements of a local part") {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "tp=1");
  auto x = DistributedTensor::distribute(Tensor::of<float>({2, 3}, {1, 2, 3, 4, 5, 6}), mesh, {});
  auto m = eigen::matrix<float>(x.local());
  CHECK((m.rows() == 2 && m.cols() == 3 && m(1, 0) == 4 && m.sum() == 21));
  CHECK(static_cast<const void*>(m.data()) == x.local().bytes_data());
  eigen::matrix<float>(x.local_for_writing()) *= 2;
  CHECK(values<float>(x.local()) == std::vector<float>{2, 4, 6, 8, 10, 12});

  Tensor v = Tensor::of<double>({3}, {1, 2, 3});
  eigen::vector<double>(v)(1) = 7;
  const Tensor& constant = v;
  CHECK(eigen::vector<double>(constant).dot(eigen::vector<double>(constant)) == 1 + 49 + 9);

  Tensor product = eigen::tensor(eigen::matrix<float>(x.local()) * eigen::matrix<float>(x.local()).transpose());
  CHECK(product.shape() == Shape{2, 2});
  CHECK(values<float>(product) == std::vector<float>{56, 128, 128, 308});
  CHECK(eigen::tensor(Eigen::Vector3d(1, 2, 3)).shape() == Shape{3});
  CHECK(values<double>(eigen::tensor(Eigen::Matrix2d{{1, 2}, {3, 4}})) ==
        std::vector<double>{1, 2, 3, 4});  // by columns
  CHECK(values<bool>(eigen::tensor(Eigen::Array2i(1, 2) > 1)) == std::vector<bool>{false, true});
  CHECK(eigen::tensor(eigen::Matrix<int64_t>(0, 3)).shape() == Shape{0, 3});
  CHECK(eigen::matrix<int64_t>(eigen::tensor(eigen::Matrix<int64_t>(0, 3))).cols() == 3);

  CHECK(error_of([&] { eigen::matrix<double>(v); }) == "[eigen::matrix] f64[3] has 1 dimensions, not 2");
  CHECK(error_of([&] { eigen::vector<float>(product); }) == "[eigen::vector] f32[2,2] has 2 dimensions, not 1");
  CHECK(error_of([&] { eigen::matrix<float>(product.narrow(1, 0, 1)); }) ==
        "[eigen::matrix] the tensor is not contiguous: take its contiguous()");
  CHECK(error_of([&] { eigen::vector<float>(v); }) == "[Tensor::data] asked for f32, but the tensor is f64[3]");
}
