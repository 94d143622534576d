// Shares of a long run in processes of their own, so that a crash or a leak in one is its own.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace tenon::fuzz {

struct Worker {
  pid_t process = -1;
  int output = -1;
};

inline Worker start_worker(int job, const std::function<std::string(int job)>& run) {
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("cannot make a pipe");
  const pid_t process = fork();
  if (process < 0) throw std::runtime_error("cannot start a process");
  if (process > 0) {
    close(ends[1]);
    return {process, ends[0]};
  }
  close(ends[0]);
  int status = 0;
  try {
    const std::string text = run(job);
    std::size_t done = 0;
    while (done < text.size()) {
      const ssize_t written = write(ends[1], text.data() + done, text.size() - done);
      if (written <= 0) throw std::runtime_error("cannot write a job's results");
      done += static_cast<std::size_t>(written);
    }
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    status = 2;
  }
  _exit(status);
}

inline std::string collect(const Worker& worker) {
  std::string text;
  char buffer[4096];
  for (ssize_t n = 0; (n = read(worker.output, buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<std::size_t>(n));
  }
  close(worker.output);
  int status = 0;
  waitpid(worker.process, &status, 0);
  if (status != 0)
    throw std::runtime_error("a job ended early, with status " + std::to_string(status));
  return text;
}

/// What `run` returns for each job from 0 on; in this process when there is one.
inline std::vector<std::string> run_jobs(int jobs, const std::function<std::string(int job)>& run) {
  if (jobs == 1) return {run(0)};
  std::vector<Worker> workers;
  for (int job = 0; job < jobs; ++job) workers.push_back(start_worker(job, run));
  std::vector<std::string> results;
  for (const Worker& worker : workers) results.push_back(collect(worker));
  return results;
}

}  // namespace tenon::fuzz
