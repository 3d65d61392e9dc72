// All of ops/: functions, operators, cards.
#pragma once

#include "ops/cards.h"
#include "ops/functions.h"
