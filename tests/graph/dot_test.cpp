// Graphs as DOT and SVG: exact text, what is marked, and dot's own errors.
#include "graph/dot.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cerrno>
#include <cstdlib>

#include "examples/attention_model.h"
#include "graph/svg.h"
#include "schedule/schedule.h"
#include "tests/support/attention_pattern.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"
#include "tests/support/temp_folder.h"

namespace tenon {
namespace {

bool has_dot() { return std::system("dot -V > /dev/null 2>&1") == 0; }

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
    ++found;
  }
  return found;
}

/// relu(x) · 2, in a module with a Linear.
struct Small : nn::Module {
  Small() : fc(add<nn::Linear>("fc", 3, 3)) {}
  Tensor forward(const Tensor& x) const { return relu(fc(x)) * 2.0; }
  nn::Child<nn::Linear> fc;
};

Schedule scheduled_small() {
  Schedule sch = create_schedule(nn::make<Small>(), {{"x", randn({2, 3})}});
  sch.replace([](const Tensor& x) { return exp(x); },
              sch.find([](const Tensor& x) { return relu(x); }));
  return sch;
}

TEST(Diff, TellsRemovedNewAndChangedNodes) {
  const Schedule sch = scheduled_small();
  const GraphDiff changes = diff(sch.original(), sch.graph());
  const auto names = [](const Graph& graph, const std::vector<NodeId>& ids) {
    std::vector<std::string> result;
    for (NodeId id : ids) result.push_back(graph.full_name(id));
    return result;
  };
  EXPECT_EQ(names(sch.original(), changes.removed), std::vector<std::string>{"relu"});
  EXPECT_EQ(names(sch.graph(), changes.added), std::vector<std::string>{"exp"});
  EXPECT_EQ(names(sch.graph(), changes.changed), std::vector<std::string>{"mul"});
}

TEST(Diff, AGraphDiffersFromItselfInNothing) {
  const Schedule sch = scheduled_small();
  const GraphDiff changes = diff(sch.graph(), Graph(sch.graph()));
  EXPECT_TRUE(changes.removed.empty() && changes.added.empty() && changes.changed.empty());
}

TEST(Diff, MarksOnNodesCount) {
  Schedule sch = create_schedule(nn::make<Small>(), {{"x", randn({2, 3})}});
  sch["fc"].checkpoint();
  EXPECT_EQ(diff(sch.original(), sch.graph()).changed.size(), 1U);
  sch.bind(sch.find([](const Tensor& x) { return relu(x); }), "cpu.relu");
  EXPECT_EQ(diff(sch.original(), sch.graph()).changed.size(), 2U);
}

TEST(Dot, ExactText) {
  const Schedule sch = scheduled_small();
  const char* expected = R"dot(digraph tenon {
  rankdir=TB; fontname="Helvetica"; compound=true;
  node [shape=box, style="rounded,filled", fillcolor="#eef3fb", color="#5b6b82", fontname="Helvetica", fontsize=11];
  edge [color="#5b6b82"];
  subgraph cluster_legend {
    label="legend"; color="#c8c8c8";
    legend_added [label="new", fillcolor="#ffd9a0", color="#b36b00"];
    legend_changed [label="changed: operands, attributes, kernel or recomputation", fillcolor="#fff6b8", color="#8f8400"];
  }
  v0 [shape=ellipse, fillcolor="#e4f4e4", label="x\nfloat32(s0, 3)"];
  n0 [label="fc: linear\nfloat32(s0, 3)"];
  n3 [label="exp\nfloat32(s0, 3)", fillcolor="#ffd9a0", color="#b36b00"];
  n2 [label="mul\nfloat32(s0, 3)", fillcolor="#fff6b8", color="#8f8400"];
  v0 -> n0;
  n0 -> n3;
  n3 -> n2;
  out0 [shape=ellipse, fillcolor="#f9e7d2", label="output 0"];
  n2 -> out0;
}
)dot";
  EXPECT_EQ(to_dot(sch), expected);
}

TEST(Dot, ModulesAreClustersAndParametersAreLeftOut) {
  const auto model = nn::make<tutorial::Attention>(16, 2);
  const Schedule sch = create_schedule(model, {{"hidden_states", randn({2, 5, 16})}});
  const std::string dot = to_dot(sch.graph());
  EXPECT_NE(dot.find("label=\"self_attn: SelfAttention\""), std::string::npos);
  EXPECT_NE(dot.find("label=\"q_proj: linear"), std::string::npos);
  EXPECT_EQ(dot.find("weight"), std::string::npos);
  EXPECT_EQ(dot.find("legend"), std::string::npos);
}

TEST(Dot, BeforeAndAfterMarkTheirOwnNodes) {
  const auto model = nn::make<tutorial::Attention>(16, 2);
  Schedule sch = create_schedule(model, {{"hidden_states", randn({2, 5, 16})}});
  sch.replace(nn::make<tutorial::FusedQKV>(16, 2), sch.find(test::qkv_pattern(2)));
  const GraphDiff changes = diff(sch.original(), sch.graph());
  const std::string before = to_dot(sch.original(), changes);
  const std::string after = to_dot(sch.graph(), changes);
  EXPECT_EQ(count(before, "#f6c6c0"), changes.removed.size() + 1);  // and the legend's
  EXPECT_EQ(count(before, "#ffd9a0"), 0U);
  EXPECT_EQ(count(after, "#ffd9a0"), changes.added.size() + 1);
  EXPECT_EQ(count(after, "#f6c6c0"), 0U);
  EXPECT_EQ(count(after, "#fff6b8"), changes.changed.size() + 1);
  EXPECT_EQ(after, to_dot(sch));
}

TEST(Dot, LabelsAreEscaped) {
  struct Odd : nn::Module {
    Odd() : fc(add<nn::Linear>("a\"b\\c\nd", 3, 3)) {}
    Tensor forward(const Tensor& x) const { return fc(x); }
    nn::Child<nn::Linear> fc;
  };
  const Schedule sch = create_schedule(nn::make<Odd>(), {randn({2, 3})});
  EXPECT_NE(to_dot(sch.graph()).find(R"(label="a\"b\\c\nd: linear)"), std::string::npos);
}

TEST(Svg, IsDrawn) {
  if (!has_dot()) GTEST_SKIP() << "there is no program 'dot'; install graphviz";
  const test::TempFolder folder;
  write_svg(folder / "after.svg", to_dot(scheduled_small()));
  const std::string svg = test::read_file(folder / "after.svg");
  EXPECT_NE(svg.find("<svg"), std::string::npos);
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1) << "a child was not reaped";
  EXPECT_EQ(errno, ECHILD);
  EXPECT_ERROR(ValueError, "cannot write " + (folder / "none/after.svg"),
               write_svg(folder / "none/after.svg", to_dot(scheduled_small())));
}

TEST(Svg, OfLargeGraphs) {
  if (!has_dot()) GTEST_SKIP() << "there is no program 'dot'; install graphviz";
  const auto model = nn::make<test::Stack<test::ResidualMlp>>(24, 8);
  const Schedule sch = create_schedule(model, {randn({2, 8})});
  EXPECT_GT(to_svg(to_dot(sch.graph()) + std::string(1 << 22, '\n')).size(), 1U << 16);
}

TEST(Svg, DotsOwnErrorIsPassedOn) {
  if (!has_dot()) GTEST_SKIP() << "there is no program 'dot'; install graphviz";
  const std::string text = test::error_text<ValueError>([] { to_svg("digraph { -> }"); });
  EXPECT_NE(text.find("syntax error in line 1"), std::string::npos)
      << text;
  const std::string large = "digraph { -> }" + std::string(1 << 22, ' ');
  EXPECT_NE(test::error_text<ValueError>([&] { to_svg(large); }).find("dot failed"),
            std::string::npos);
  EXPECT_NE(test::error_text<ValueError>([] { to_svg(""); }).find("dot failed"), std::string::npos);
}

TEST(Svg, WithoutDotSaysWhatToInstall) {
  const test::TempFolder empty;
  const std::string path = std::getenv("PATH");
  setenv("PATH", empty.path().c_str(), 1);
  EXPECT_ERROR(ValueError,
               "there is no program 'dot' to draw an SVG with; install graphviz (on Debian or "
               "Ubuntu: apt-get install graphviz)",
               to_svg("digraph {}"));
  setenv("PATH", path.c_str(), 1);
}

}  // namespace
}  // namespace tenon
