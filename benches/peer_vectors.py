"""Vector indexes as peers to measure against, from PyPI: hnswlib, faiss, usearch, sqlite-vec, qdrant.

    peer_vectors.py --base B.npy --queries Q.npy --out OUT.json --engines hnswlib,faiss,... [--repeat 5]

One thread, one query a call, cosine distance on vectors of length 1 (as inner products). Writes for each engine the time
to build, bytes in memory or on disk where the engine tells, and for each setting the medians of `repeat` rounds over all
queries and the ids that it found, so that the caller counts recall by its own truth. Progress goes to standard error.
"""

import argparse
import json
import os
import sys
import tempfile
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np

EFFORTS = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384]


def rounds(queries, repeat, search):
    """Queries a second of each round, and the ids of the last one."""
    rates, ids = [], []
    for _ in range(repeat):
        start = time.perf_counter()
        ids = [search(query) for query in queries]
        rates.append(len(queries) / (time.perf_counter() - start))
    return rates, [[int(i) for i in found] for found in ids]


def timed(build):
    start = time.perf_counter()
    return build(), time.perf_counter() - start


def size_of(save):
    """Bytes of the file that `save` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "index")
        save(path)
        return os.path.getsize(path)


def hnswlib_(base, queries, options):
    import hnswlib

    def build():
        index = hnswlib.Index(space="ip", dim=base.shape[1])
        index.init_index(max_elements=len(base), M=options.links, ef_construction=options.build_effort)
        index.set_num_threads(1)
        index.add_items(base, num_threads=1)
        return index

    index, build_s = timed(build)
    points = []
    for effort in EFFORTS:
        index.set_ef(max(effort, 10))
        search = lambda q: index.knn_query(q, k=10, num_threads=1)[0][0]
        points.append((effort, *rounds(queries, options.repeat, search)))
    yield "hnswlib", build_s, size_of(index.save_index), points


def faiss_(base, queries, options):
    import faiss

    faiss.omp_set_num_threads(1)
    dimension = base.shape[1]
    inner = faiss.METRIC_INNER_PRODUCT

    def measure(name, index, set_effort, efforts):
        def build():
            if not index.is_trained:
                index.train(base)
            index.add(base)

        _, build_s = timed(build)
        points = []
        for effort in efforts:
            set_effort(effort)
            search = lambda q: index.search(q[None], 10)[1][0]
            points.append((effort, *rounds(queries, options.repeat, search)))
        return name, build_s, size_of(lambda path: faiss.write_index(index, path)), points

    yield measure("faiss flat", faiss.IndexFlatIP(dimension), lambda _: None, [0])
    for name, index in (
        ("faiss HNSW", faiss.IndexHNSWFlat(dimension, options.links, inner)),
        ("faiss HNSW-SQ8", faiss.IndexHNSWSQ(dimension, faiss.ScalarQuantizer.QT_8bit, options.links, inner)),
    ):
        index.hnsw.efConstruction = options.build_effort
        yield measure(name, index, lambda effort: setattr(index.hnsw, "efSearch", effort), EFFORTS)
    n_lists = max(16, int(4 * len(base) ** 0.5))
    quantizer = faiss.IndexFlatIP(dimension)
    parts = next(m for m in (dimension // 4, 48, 32, 25, 16, 10, 8, 5, 4, 2, 1) if dimension % m == 0)
    index = faiss.IndexIVFPQ(quantizer, dimension, n_lists, parts, 8, inner)
    probes = [n for n in (1, 4, 16, 64, 256) if n <= n_lists]
    yield measure("faiss IVF-PQ", index, lambda effort: setattr(index, "nprobe", effort), probes)


def usearch_(base, queries, options):
    from usearch.index import Index

    for name, dtype in (("usearch f32", "f32"), ("usearch bf16", "bf16"), ("usearch i8", "i8")):
        def build():
            index = Index(
                ndim=base.shape[1],
                metric="cos" if dtype == "i8" else "ip",
                dtype=dtype,
                connectivity=options.links,
                expansion_add=options.build_effort,
            )
            index.add(np.arange(len(base)), base, threads=1)
            return index

        index, build_s = timed(build)
        points = []
        for effort in EFFORTS:
            index.expansion_search = effort
            search = lambda q: index.search(q, 10, threads=1).keys
            points.append((effort, *rounds(queries, options.repeat, search)))
        yield name, build_s, size_of(index.save), points


def sqlite_vec_(base, queries, options):
    # Python's own sqlite3 is often built without extensions.
    import apsw
    import sqlite_vec

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "vectors.db")

        def build():
            connection = apsw.Connection(path)
            connection.enable_load_extension(True)
            connection.load_extension(sqlite_vec.loadable_path())
            dimension = base.shape[1]
            connection.execute(f"CREATE VIRTUAL TABLE v USING vec0(e float[{dimension}] distance_metric=cosine)")
            rows = ((i, vector.tobytes()) for i, vector in enumerate(base))
            with connection:
                connection.executemany("INSERT INTO v(rowid, e) VALUES (?, ?)", rows)
            return connection

        connection, build_s = timed(build)
        statement = "SELECT rowid FROM v WHERE e MATCH ? AND k = 10 ORDER BY distance"
        search = lambda q: [row[0] for row in connection.execute(statement, (q.tobytes(),))]
        few = queries[: options.slow_queries]
        points = [(0, *rounds(few, options.repeat, search))]
        yield "sqlite-vec", build_s, os.path.getsize(path), points
        connection.close()


def qdrant_(base, queries, options):
    """The engine within the process, by qdrant-edge-py; where that is missing, the client's local mode."""
    try:
        yield qdrant_edge(base, queries, options)
    except ImportError:
        yield from qdrant_local(base, queries, options)


def qdrant_edge(base, queries, options):
    import qdrant_edge as qdrant

    with tempfile.TemporaryDirectory() as folder:
        graph = qdrant.HnswIndexConfig(
            m=options.links, ef_construct=options.build_effort, full_scan_threshold=10, max_indexing_threads=1
        )
        vectors = qdrant.EdgeVectorParams(size=base.shape[1], distance=qdrant.Distance.Cosine, hnsw_config=graph)
        # One segment, which is indexed whatever its size.
        optimizers = qdrant.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1)
        config = qdrant.EdgeConfig(vectors=vectors, hnsw_config=graph, optimizers=optimizers, max_search_threads=1)

        def build():
            shard = qdrant.EdgeShard.create(os.path.join(folder, "shard"), config)
            for start in range(0, len(base), 1000):
                points = [
                    qdrant.Point(start + i, vector)
                    for i, vector in enumerate(base[start : start + 1000].tolist())
                ]
                shard.update(qdrant.UpdateOperation.upsert_points(points))
            shard.optimize()
            return shard

        shard, build_s = timed(build)
        points, lists = [], queries.tolist()
        for effort in EFFORTS:
            params = qdrant.SearchParams(hnsw_ef=effort)

            def search(query):
                nearest = qdrant.Query.Nearest(query)
                return [p.id for p in shard.query(qdrant.QueryRequest(limit=10, query=nearest, params=params))]

            points.append((effort, *rounds(lists, options.repeat, search)))
        shard.flush()
        size = sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(folder) for name in names)
        shard.close()
        return "qdrant-edge", build_s, size, points


def qdrant_local(base, queries, options):
    """The client's local mode: numpy inside, and no index."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    parameters = models.VectorParams(size=base.shape[1], distance=models.Distance.COSINE)
    client.create_collection("v", vectors_config=parameters)
    build = lambda: client.upload_collection("v", vectors=base, ids=range(len(base)), wait=True)
    _, build_s = timed(build)
    search = lambda q: [p.id for p in client.query_points("v", query=q, limit=10).points]
    points = [(0, *rounds(queries[: options.slow_queries], options.repeat, search))]
    yield "qdrant, local mode of the client", build_s, None, points


def numpy_(base, queries, options):
    def search(query):
        scores = base @ query
        best = np.argpartition(-scores, 10)[:10]
        return best[np.argsort(-scores[best])]

    yield "numpy", 0.0, base.nbytes, [(0, *rounds(queries, options.repeat, search))]


ENGINES = {
    "numpy": numpy_,
    "hnswlib": hnswlib_,
    "faiss": faiss_,
    "usearch": usearch_,
    "sqlite-vec": sqlite_vec_,
    "qdrant": qdrant_,
}


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", required=True)
    parser.add_argument("--queries", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--links", type=int, default=16)
    parser.add_argument("--build-effort", type=int, default=200)
    parser.add_argument("--slow-queries", type=int, default=100)
    options = parser.parse_args()
    base, queries = np.load(options.base), np.load(options.queries)
    report, missing = [], {}
    for engine in options.engines.split(","):
        print(f"peer {engine}", file=sys.stderr, flush=True)
        try:
            for name, build_s, n_bytes, points in ENGINES[engine](base, queries, options):
                report.append(
                    {
                        "name": name,
                        "build_s": build_s,
                        "bytes": n_bytes,
                        "points": [
                            {"effort": effort, "qps": rates, "ids": ids} for effort, rates, ids in points
                        ],
                    }
                )
        except ImportError as error:
            missing[engine] = str(error)
    with open(options.out, "w") as file:
        json.dump({"engines": report, "missing": missing}, file)


if __name__ == "__main__":
    main()
