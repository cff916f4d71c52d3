#pragma once

// Early return on absl::Status errors. Names follow Abseil's own, so that they can be dropped when
// the distribution's Abseil has them.

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define PACKTRAIN_CONCAT_INNER(a, b) a##b
#define PACKTRAIN_CONCAT(a, b) PACKTRAIN_CONCAT_INNER(a, b)

// Returns from the enclosing function if `expr` (an absl::Status) is not OK.
#define RETURN_IF_ERROR(expr)                                   \
  do {                                                          \
    if (absl::Status packtrain_status = (expr); !packtrain_status.ok()) return packtrain_status; \
  } while (false)

// ASSIGN_OR_RETURN(auto x, StatusOrExpr): assigns the value or returns the error.
#define ASSIGN_OR_RETURN(lhs, expr) \
  PACKTRAIN_ASSIGN_OR_RETURN(PACKTRAIN_CONCAT(packtrain_statusor_, __LINE__), lhs, expr)
#define PACKTRAIN_ASSIGN_OR_RETURN(tmp, lhs, expr) \
  auto tmp = (expr);                               \
  if (!tmp.ok()) return tmp.status();              \
  lhs = std::move(tmp).value()
