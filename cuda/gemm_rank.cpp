#include "cuda/gemm_rank.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

struct Extent {
  int rows = 0, columns = 0;
};

constexpr std::size_t kTiles = 631;

/// cublasLtMatmulTile_t in numbers: 35 by hand, then multiples of 8 by multiples of 64, then the other
/// way round, each pair once.
constexpr std::array<Extent, kTiles> make_tiles() {
  std::array<Extent, kTiles> tiles = {
      {{0, 0},     {8, 8},     {8, 16},    {16, 8},    {8, 32},    {16, 16},   {32, 8},
       {8, 64},    {16, 32},   {32, 16},   {64, 8},    {32, 32},   {32, 64},   {64, 32},
       {32, 128},  {64, 64},   {128, 32},  {64, 128},  {128, 64},  {64, 256},  {128, 128},
       {256, 64},  {64, 512},  {128, 256}, {256, 128}, {512, 64},  {64, 96},   {96, 64},
       {96, 128},  {128, 160}, {160, 128}, {192, 128}, {128, 192}, {128, 96},  {32, 256},
       {256, 32}}};
  std::size_t count = 36;
  constexpr int kLongest = 768, kFirstArea = 768 * 64, kSecondArea = 256 * 256;
  const auto add = [&](int rows, int columns) {
    for (std::size_t i = 0; i < count; ++i) {
      if (tiles[i].rows == rows && tiles[i].columns == columns) return;
    }
    if (count < kTiles) tiles[count++] = {rows, columns};
  };
  for (int rows = 8; rows <= kLongest; rows += 8) {
    for (int columns = 64; columns <= kLongest && rows * columns <= kFirstArea; columns += 64) {
      add(rows, columns);
    }
  }
  for (int rows = 64; rows <= kLongest; rows += 64) {
    for (int columns = 8; columns <= kLongest && rows * columns <= kSecondArea; columns += 8) {
      add(rows, columns);
    }
  }
  return tiles;
}

/// cublasLtClusterShape_t up to 4x4, blocks along rows and columns.
constexpr Extent kClusters[] = {{0, 0}, {0, 0}, {1, 1}, {2, 1}, {4, 1}, {1, 2},
                                {2, 2}, {4, 2}, {1, 4}, {2, 4}, {4, 4}};

/// (a⁴ + b⁴)^¼: of two things at once the longer counts, and both where they are alike.
double overlapped(double a, double b) { return std::sqrt(std::sqrt(a * a * a * a + b * b * b * b)); }

}  // namespace

std::optional<TileShape> tile_shape_of(const GemmAlgorithm& algorithm) {
  static constexpr std::array<Extent, kTiles> kTileSizes = make_tiles();
  constexpr std::uint32_t kHopperKernels = 66;
  // Bits of the custom option as they are seen to go with tiles.
  constexpr std::uint32_t kWideAlongRows = 1, kCooperates = 4;
  const auto [id, tile, parts, scheme, swizzle, custom, stages, inner, cluster] = algorithm;
  if (id != kHopperKernels || tile >= kTileSizes.size() || cluster >= std::size(kClusters)) {
    return std::nullopt;
  }
  const Extent size = kTileSizes[tile], blocks = kClusters[cluster];
  if (size.rows == 0 || blocks.rows == 0 || parts == 0 || parts > 64) return std::nullopt;
  return TileShape{size.rows,
                   size.columns,
                   blocks.rows,
                   blocks.columns,
                   static_cast<int>(parts),
                   (custom & kWideAlongRows) != 0,
                   (custom & kCooperates) != 0};
}

double expected_us(const GemmProblem& p, const TileShape& t, int multiprocessors) {
  constexpr int kDepth = 64;                                 // of k in a step
  constexpr double kClocksPerNs = 1.755;                     // of an H200
  constexpr double kLaunch = 2508, kParts = 1675, kPart = 0.0021;  // ns, and for each element of it
  constexpr double kStep = 93.7, kReader = 2.24;             // ns that a step's loads wait
  constexpr double kLoads = 118, kMemory = 3350;             // bytes a ns, of a block and of all
  constexpr double kFinish = 0.1, kRagged = 1.48, kBeside = 0.447;
  const auto real = [](std::int64_t x) { return static_cast<double>(x); };
  const std::int64_t along_n = ceil_div(ceil_div(p.n, t.n), t.cluster_n) * t.cluster_n;
  const std::int64_t along_m = ceil_div(ceil_div(p.m, t.m), t.cluster_m) * t.cluster_m;
  const std::int64_t blocks = along_n * along_m * t.parts * p.batch;
  const int cluster = t.cluster_n * t.cluster_m;
  const std::int64_t slots = std::max(1, multiprocessors / cluster) * cluster;
  const double waves = real(ceil_div(blocks, slots));
  const double steps = real(ceil_div(ceil_div(p.k, kDepth), t.parts));
  const int wide = t.wide_along_n ? t.n : t.m, other = t.wide_along_n ? t.m : t.n;
  // Four products of 16 along k, of 64 rows each; narrow ones wait for shared memory.
  const double products = 4 * real(ceil_div(wide, 64)) *
                          std::max(other / 2.0, 1.37 * (16 + other / 4.0)) / kClocksPerNs;
  const double rows = real(std::min<std::int64_t>(t.n, p.n) + std::min<std::int64_t>(t.m, p.m));
  const double loads = rows * kDepth * 2 / kLoads;
  // All clusters along n read the same rows of A from the same few places of the cache.
  const double waiting = kStep + kReader * real(std::min(along_n, slots)) / t.cluster_n;
  const double step = overlapped(overlapped(products, loads), waiting);
  const double bytes = 2.0 * real(p.batch) * real(p.m * p.k + p.n * p.k + p.m * p.n);
  const double finish = kFinish * t.n * t.m * (t.n % 64 == 0 ? 1 : kRagged);
  const double finishes = finish * (t.cooperates ? waves : 1 + kBeside * (waves - 1));
  const double parts = t.parts > 1 ? kParts + kPart * t.parts * real(p.batch * p.m * p.n) : 0;
  const double body = overlapped(waves * steps * step, bytes / kMemory);
  return (kLaunch + body + finishes + parts) / 1000;
}

std::size_t choose_algorithm(const GemmProblem& p, std::span<const GemmAlgorithm> algorithms,
                             int multiprocessors) {
  std::size_t best = 0;
  double least = HUGE_VAL;
  for (std::size_t i = 0; i < algorithms.size(); ++i) {
    const auto shape = tile_shape_of(algorithms[i]);
    if (!shape) continue;
    const double time = expected_us(p, *shape, multiprocessors);
    if (time >= least) continue;
    least = time;
    best = i;
  }
  return best;
}

}  // namespace tenon::cuda
