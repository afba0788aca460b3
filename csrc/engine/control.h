// The kinds of control messages: the first byte of each.
#pragma once

namespace codedgrad {

constexpr char kBlob = 'B';     // for gather()
constexpr char kError = 'E';    // ends the job
constexpr char kGoodbye = 'G';  // the worker has come to its end
constexpr char kDropped = 'D';  // a session, with its number
constexpr char kView = 'V';     // who is out

}  // namespace codedgrad
