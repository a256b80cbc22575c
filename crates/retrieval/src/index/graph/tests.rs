use super::*;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

fn points(random: &mut StdRng, n: usize, dimension: usize) -> Vec<Vec<f32>> {
    // Clusters, as real vectors have them.
    let centers: Vec<Vec<f32>> =
        (0..16).map(|_| (0..dimension).map(|_| random.random_range(-1.0..1.0)).collect()).collect();
    (0..n)
        .map(|_| {
            let center = &centers[random.random_range(0..centers.len())];
            center.iter().map(|c| c + random.random_range(-0.6..0.6)).collect()
        })
        .collect()
}

fn recall(graph: &Graph, queries: &[Vec<f32>], effort: usize) -> f64 {
    let mut found = 0;
    for query in queries {
        let exact = graph.exact().search(query, &Search::new(10)).unwrap();
        let near = graph.search(query, &Search::new(10).effort(effort)).unwrap();
        found += near.iter().filter(|n| exact.iter().any(|e| e.slot == n.slot)).count();
    }
    found as f64 / (queries.len() * 10) as f64
}

#[test]
fn a_graph_finds_neighbors_and_keeps_its_invariants() {
    for metric in Metric::ALL {
        let mut random = StdRng::seed_from_u64(7);
        let all = points(&mut random, 2100, 48);
        let mut graph = Graph::new(metric, 48, GraphConfig::default()).unwrap();
        for point in &all[..2000] {
            graph.insert(point).unwrap();
        }
        graph.check().unwrap();
        let found = recall(&graph, &all[2000..], 100);
        assert!(found > 0.95, "{metric}: {found}");
    }
}

/// Inserts and removes at random; a removed slot must not come back while links lead to it.
fn check_changes(dimension: usize, links: usize, most: usize, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let all = points(&mut random, 700, dimension);
    let config = GraphConfig { links, build_effort: 40, ..GraphConfig::default() };
    let mut graph = Graph::new(Metric::L2, dimension, config).unwrap();
    let mut live: Vec<u32> = Vec::new();
    for step in 0..4000 {
        let grow =
            live.len() < most / 10 || (random.random_bool(0.5) && live.len() < most && step % 1000 < 800);
        if grow {
            let slot = graph.insert(&all[random.random_range(0..all.len())]).unwrap();
            assert!(!live.contains(&slot), "slot {slot} is in use");
            live.push(slot);
        } else {
            let slot = live.swap_remove(random.random_range(0..live.len()));
            assert!(graph.remove(slot));
            assert!(!graph.remove(slot));
        }
        if step % 50 == 0 {
            graph.check().unwrap();
        }
    }
    assert_eq!(graph.len(), live.len());
    let found = recall(&graph, &all[..50], 100);
    assert!(found > 0.95, "{found}");
    while let Some(slot) = live.pop() {
        assert!(graph.remove(slot));
        graph.check().unwrap();
    }
    assert!(graph.search(&all[0], &Search::new(3)).unwrap().is_empty());
    graph.insert(&all[0]).unwrap();
    assert_eq!(graph.search(&all[0], &Search::new(3)).unwrap().len(), 1);
    graph.check().unwrap();
}

#[test]
fn removal_and_reuse_keep_the_invariants() {
    check_changes(20, 6, 600, 8);
    check_changes(16, 4, 300, 9);
    check_changes(2, 4, 120, 10);
}

#[test]
fn tuning_reaches_the_recall_that_is_asked_for() {
    let mut random = StdRng::seed_from_u64(9);
    let all = points(&mut random, 1600, 32);
    let mut graph =
        Graph::new(Metric::Cosine, 32, GraphConfig { links: 8, ..GraphConfig::default() }).unwrap();
    for point in &all[..1500] {
        graph.insert(point).unwrap();
    }
    let mut efforts = Vec::new();
    for wanted in [0.5, 0.9, 0.99, 1.0] {
        let tuned = graph.tune(&all[1500..], 10, wanted).unwrap();
        assert!(
            tuned.recall >= wanted && recall(&graph, &all[1500..], tuned.effort) >= wanted - 1e-9,
            "{tuned:?}"
        );
        efforts.push(tuned.effort);
    }
    assert!(efforts.is_sorted(), "{efforts:?}");
    assert!(graph.tune(&all[1500..], 10, 1.5).is_err() && graph.tune(&[], 10, 0.9).is_err());
}
