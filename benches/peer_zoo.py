"""Recall of hnswlib and faiss HNSW-SQ8 on vectors in two files, for `cargo bench -p breakers-retrieval --bench zoo`.

    peer_zoo.py BASE QUERIES DIMENSION l2|cosine|dot K BEAM

Files hold 32-bit floats. Both build with M = 16 and a build effort of 200, in one thread. Prints two cells of a table: the
share of the true nearest `K` that each finds, by distances in 64 bits.
"""

import os
import sys

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np

LINKS, BUILD_EFFORT = 16, 200


def distances(base, query, metric):
    if metric == "l2":
        return ((base - query) ** 2).sum(axis=1)
    return -(base @ query)


def recalls(all_found, base, queries, metric, k):
    """The share of the true nearest that each of the searches found."""
    hits = [0] * len(all_found)
    for i, query in enumerate(queries):
        all_distances = distances(base, query, metric)
        bound = np.partition(all_distances, k - 1)[k - 1]
        slack = 1e-6 * max(1e-30, abs(bound))
        for j, found in enumerate(all_found):
            ids = [at for at in found[i] if at >= 0]
            hits[j] += min(k, int((all_distances[ids] <= bound + slack).sum()))
    return [n / (k * len(queries)) for n in hits]


def by_hnswlib(base, queries, metric, k, beam):
    import hnswlib

    index = hnswlib.Index(space="l2" if metric == "l2" else "ip", dim=base.shape[1])
    index.init_index(max_elements=len(base), M=LINKS, ef_construction=BUILD_EFFORT)
    index.set_num_threads(1)
    index.add_items(base, num_threads=1)
    index.set_ef(beam)
    return index.knn_query(queries, k=k, num_threads=1)[0]


def by_faiss(base, queries, metric, k, beam):
    import faiss

    faiss.omp_set_num_threads(1)
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexHNSWSQ(base.shape[1], faiss.ScalarQuantizer.QT_8bit, LINKS, kind)
    index.hnsw.efConstruction = BUILD_EFFORT
    index.train(base)
    index.add(base)
    index.hnsw.efSearch = beam
    return index.search(queries, k)[1]


def main():
    base_file, query_file, dimension, metric, k, beam = sys.argv[1:]
    dimension, k, beam = int(dimension), int(k), int(beam)
    base = np.fromfile(base_file, dtype="<f4").reshape(-1, dimension)
    queries = np.fromfile(query_file, dtype="<f4").reshape(-1, dimension)
    if metric == "cosine":
        base, queries = (
            (x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)
            for x in (base, queries)
        )
    found = [search(base, queries, metric, k, beam) for search in (by_hnswlib, by_faiss)]
    cells = [f"{share:.3f}" for share in recalls(found, base.astype(np.float64), queries.astype(np.float64), metric, k)]
    print(" | ".join(cells) + " |")


main()
