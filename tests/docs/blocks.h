// What a page's fragments take for granted.
#pragma once

#include <iostream>

#include "dtensor/comm_log.h"
#include "dtensor/launch.h"
#include "nn/layers.h"
#include "nn/record.h"
#include "nn/train/adamw.h"
#include "nn/train/trainer.h"
#include "ops/all.h"

using namespace dtensor;

// Variables of a page show what a function returns: nobody reads them.
#pragma GCC diagnostic ignored "-Wunused-variable"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
