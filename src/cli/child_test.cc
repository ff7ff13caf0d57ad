// SPDX-License-Identifier: Apache-2.0
#include "cli/child.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "draftflow/base/file.h"
#include "testing/temp_folder.h"

namespace draftflow::cli {
namespace {

ChildSpec shell(const testing_support::TempFolder& folder, const std::string& script) {
  return {"shell", {"-c", script}, folder.path() / "logs" / "shell.log", {}};
}

ChildExit wait_for(Children& children) {
  for (;;) {
    if (auto exit = children.reap()) return *exit;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

// Waits until the log has the text; a child that never writes it fails the test by its time limit.
void wait_for_log(const std::filesystem::path& log, const std::string& text) {
  for (int i = 0; i < 2000; ++i) {
    if (std::filesystem::exists(log) && read_text_file(log).find(text) != std::string::npos) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  FAIL() << "no '" << text << "' in " << log;
}

TEST(Children, ExitCodesAndSignalsAreTold) {
  const testing_support::TempFolder folder;
  Children children("/bin/sh", -1);
  children.start(shell(folder, "exit 7"));
  EXPECT_EQ(wait_for(children).code, 7);
  children.start(shell(folder, "kill -KILL $$"));
  EXPECT_EQ(wait_for(children).signal, SIGKILL);
  EXPECT_TRUE(children.empty());
}

TEST(Children, OutputGoesToTheLogOrToItsOwnFile) {
  const testing_support::TempFolder folder;
  Children children("/bin/sh", -1);
  ChildSpec spec = shell(folder, "echo result; echo trouble >&2; cat");  // standard input is empty
  spec.output = folder.path() / "out";
  children.start(spec);
  EXPECT_EQ(wait_for(children).code, 0);
  EXPECT_EQ(read_text_file(folder.path() / "out"), "result\n");
  EXPECT_EQ(read_text_file(spec.log), "trouble\n");
}

TEST(Children, WhatCannotBeExecutedSaysSoInTheLog) {
  const testing_support::TempFolder folder;
  Children children(folder.path() / "missing", -1);
  const ChildSpec spec = shell(folder, "");
  children.start(spec);
  EXPECT_EQ(wait_for(children).code, 127);
  EXPECT_THAT(read_text_file(spec.log), testing::HasSubstr("missing: No such file or directory"));
}

TEST(Children, StopIsGentleFirst) {
  const testing_support::TempFolder folder;
  Children children("/bin/sh", -1);
  const ChildSpec spec = shell(folder, "trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.05; done");
  children.start(spec);
  wait_for_log(spec.log, "ready");
  children.stop(20);
  EXPECT_TRUE(children.empty());
  EXPECT_THAT(read_text_file(spec.log), testing::HasSubstr("saved"));
}

TEST(Children, OneThatDoesNotListenIsKilled) {
  const testing_support::TempFolder folder;
  Children children("/bin/sh", -1);
  const ChildSpec spec = shell(folder, "trap '' TERM; echo ready; while :; do sleep 0.05; done");
  children.start(spec);
  wait_for_log(spec.log, "ready");
  children.stop(0.05);
  EXPECT_TRUE(children.empty());
}

// The supervisor is killed by SIGKILL: its child is told to stop, and the lock that it inherited is free afterwards.
TEST(Children, EndWithTheirSupervisorHoweverItDies) {
  const testing_support::TempFolder folder;
  const auto lock_path = folder.path() / "lock";
  const ChildSpec spec = shell(folder, "trap 'echo told; exit 0' TERM; echo ready; while :; do sleep 0.05; done");
  const pid_t supervisor = ::fork();
  if (supervisor == 0) {
    const UniqueFd lock = open_file(lock_path, O_RDWR | O_CREAT);
    ::flock(lock.get(), LOCK_EX);
    Children children("/bin/sh", lock.get());
    children.start(spec);
    ::pause();
    ::_exit(0);
  }
  wait_for_log(spec.log, "ready");
  ::kill(supervisor, SIGKILL);
  ::waitpid(supervisor, nullptr, 0);
  const UniqueFd lock = open_file(lock_path, O_RDWR);
  ASSERT_EQ(::flock(lock.get(), LOCK_EX), 0);  // waits for the child
  EXPECT_THAT(read_text_file(spec.log), testing::HasSubstr("told"));
}

TEST(TailOf, GivesTheLastLinesPrintable) {
  const testing_support::TempFolder folder;
  EXPECT_EQ(tail_of(folder.path() / "missing", 3), "");
  replace_file(folder.path() / "log", "one\ntwo\nthr\x1b[2Jee\nfour\n");
  EXPECT_EQ(tail_of(folder.path() / "log", 2), "thr\\x1b[2Jee\nfour");
  EXPECT_EQ(tail_of(folder.path() / "log", 9), "one\ntwo\nthr\\x1b[2Jee\nfour");
}

}  // namespace
}  // namespace draftflow::cli
