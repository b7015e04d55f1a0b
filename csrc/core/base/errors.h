// The exceptions core throws. Each text says what was asked, what is true, and what to do.
#pragma once

#include <stdexcept>
#include <string>

#include "core/base/types.h"

namespace poolalloc {

// A device has no room left, after every step of the ladder (docs/design/memory-flow.md).
class POOLALLOC_API OutOfMemory : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The driver refused a call for another reason than memory; the text carries the driver's own code.
class POOLALLOC_API DriverError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The caller broke the rules: an address that is not ours, a second free, an unknown pool.
class POOLALLOC_API UsageError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// An option was unknown, out of range or contradicted another.
class POOLALLOC_API ConfigError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// validate() found an equation that does not hold: a bug in poolalloc.
class POOLALLOC_API InvariantViolation : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

}  // namespace poolalloc
