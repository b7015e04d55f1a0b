// Size classes: size -> bin -> size for every size up to 2^40.
//
// bin_of is constant between two neighbouring multiples of 512 and never falls, so checking every multiple up to 16 MiB
// and every edge of every bin beyond covers each size there is.
#include "core/base/size_class.h"

#include <doctest/doctest.h>

#include <initializer_list>

using namespace poolalloc;

namespace {

// The class of `bytes` holds it, and the class below does not.
void check_smallest_class(Bytes bytes) {
  const int bin = bin_of(bytes);
  CHECK((bin >= 0 && bin < kBins));
  CHECK(bin_bytes(bin) >= bytes);
  CHECK((bin == 0 || bin_bytes(bin - 1) < bytes));
  CHECK(bin_of(bin_bytes(bin)) == bin);
}

TEST_CASE("every byte up to 64 KiB has the smallest class that holds it") {
  for (Bytes bytes = 1; bytes <= 64 << 10; ++bytes) check_smallest_class(bytes);
}

TEST_CASE("every multiple of 512 up to 16 MiB and its neighbours") {
  for (Bytes bytes = 512; bytes <= 16 << 20; bytes += 512) {
    check_smallest_class(bytes - 1);
    check_smallest_class(bytes);
    check_smallest_class(bytes + 1);
    CHECK(bin_of(bytes - 511) == bin_of(bytes));  // one class for the whole granule
    CHECK(bin_of(bytes + 1) - bin_of(bytes) <= 1);
  }
}

TEST_CASE("every edge of every bin up to 2 to the 40") {
  for (int bin = 0; bin < kBins; ++bin) {
    const Bytes bytes = bin_bytes(bin);
    CHECK(bin_of(bytes) == bin);
    CHECK(bin_of(bytes - 1) == bin);
    CHECK(bin_of(bytes - 511) == bin);
    check_smallest_class(bytes);
    check_smallest_class(bytes - 1);
    if (bin == kBins - 1) continue;
    CHECK(bin_of(bytes + 1) == bin + 1);
    check_smallest_class(bytes + 1);
    const Bytes next = bin_bytes(bin + 1);
    CHECK(next > bytes);
    CHECK(bin_of(bytes + (next - bytes) / 2) == bin + 1);
  }
  CHECK(bin_bytes(kBins - 1) == kMaxBinnedBytes);
}

TEST_CASE("a class never falls when the size grows") {
  int before = 0;
  for (int power = 0; power <= 40; ++power) {
    for (Bytes eighth = 0; eighth < 64; ++eighth) {
      const Bytes bytes = (Bytes{1} << power) + (Bytes{1} << power) * eighth / 64;
      if (bytes > kMaxBinnedBytes) continue;
      CHECK(bin_of(bytes) >= before);
      before = bin_of(bytes);
    }
  }
}

TEST_CASE("classes are multiples of 512 and waste an eighth at most") {
  Bytes below = 0;
  for (int bin = 0; bin < kBins; ++bin) {
    const Bytes bytes = bin_bytes(bin);
    CHECK(bytes % kGranularity == 0);
    // The worst request of a class is one byte more than the class below.
    const Bytes waste = bytes - (below + 1);
    CHECK((waste < kGranularity || waste * 8 <= below + 1));
    below = bytes;
  }
}

TEST_CASE("every hole of a higher class is larger") {
  int before = 0;
  Bytes first_of_class = 0;
  for (Bytes bytes = 512; bytes <= 64 << 20; bytes += 512) {
    const int own = hole_class(bytes);
    CHECK((own == before || own == before + 1));
    if (own != before) first_of_class = bytes;
    CHECK(bytes >= first_of_class);
    before = own;
  }
  for (int power = 26; power < 40; ++power)
    for (Bytes eighth = 8; eighth < 16; ++eighth) {
      const Bytes edge = (Bytes{1} << power) / 8 * eighth;  // the smallest hole of its class
      CHECK(hole_class(edge) == hole_class(edge - 512) + 1);
      CHECK(hole_class(edge) == hole_class(edge + 512));
    }
}

TEST_CASE("a hole of any size has a class") {
  int before = 0;
  for (int power = 9; power < 64; ++power)
    for (Bytes off : {Bytes{0}, Bytes{512}}) {
      const int own = hole_class((Bytes{1} << power) + off);
      CHECK((own >= before && own < kHoleClasses));
      before = own;
    }
}

}  // namespace
