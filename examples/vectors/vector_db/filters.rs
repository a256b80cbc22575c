//! Searches with conditions, and what happens while points come and go.

use std::time::Instant;

use breakers_cli::Result;
use breakers_eval::stats;
use breakers_retrieval::{
    Metric, distance,
    index::{Graph, GraphConfig, Index, Search},
    store::{Collection, Filter, Query},
};

use crate::corpus::Corpus;
use crate::engines::{BUILD_EFFORT, K, LINKS};

/// One condition, and how it was answered.
pub(crate) struct Filtered {
    pub(crate) name: String,
    pub(crate) share: f64,
    pub(crate) strategy: String,
    pub(crate) recall: f64,
    pub(crate) qps: f64,
    pub(crate) under_returns: usize,
}

/// Conditions that match ever fewer points, and one that holds only far from the query.
pub(crate) fn measure(corpus: &Corpus, collection: &Collection, n_queries: usize) -> Result<Vec<Filtered>> {
    let n = collection.len()?;
    let queries: Vec<&[f32]> = corpus.queries().take(n_queries).collect();
    let side = |query: &[f32]| i64::from(distance::dot(query, corpus.axis()) > corpus.axis_median);
    type Make<'a> = Box<dyn Fn(&[f32]) -> Filter + 'a>;
    let conditions: Vec<(&str, Make<'_>)> = vec![
        ("50 %", Box::new(|_| Filter::eq("half", 1))),
        ("10 %", Box::new(|_| Filter::eq("tenth", 3))),
        ("1 %", Box::new(|_| Filter::eq("percent", 7))),
        ("0.1 %", Box::new(|_| Filter::eq("permille", 77))),
        ("0.01 %", Box::new(|_| Filter::eq("rare", 777))),
        ("far side only", Box::new(|query| Filter::eq("side", 1 - side(query)))),
    ];
    let mut results = Vec::new();
    for (name, make) in conditions {
        let asked: Vec<Query> = queries.iter().map(|&q| Query::new(q, K).filter(make(q))).collect();
        let plan = collection.explain(&asked[0])?;
        let start = Instant::now();
        let mut found = Vec::new();
        for query in &asked {
            found.push(collection.search(query)?);
        }
        let qps = asked.len() as f64 / start.elapsed().as_secs_f64();
        let (mut hits, mut all, mut under_returns) = (0, 0, 0);
        for (query, found) in asked.into_iter().zip(&found) {
            let truth = collection.search(&query.exact())?;
            under_returns += usize::from(found.len() < truth.len());
            hits += found.iter().filter(|hit| truth.iter().any(|t| t.id == hit.id)).count();
            all += truth.len();
        }
        results.push(Filtered {
            name: name.to_owned(),
            share: plan.n_matching as f64 / n.max(1) as f64,
            strategy: format!("{:?}", plan.strategy),
            recall: hits as f64 / all.max(1) as f64,
            qps,
            under_returns,
        });
    }
    Ok(results)
}

/// Recall after each cycle of removing and adding a tenth, and the times of removals.
pub(crate) struct Churn {
    pub(crate) effort: usize,
    pub(crate) recall: Vec<f64>,
    pub(crate) removal_p50_ms: f64,
    pub(crate) removal_p99_ms: f64,
}

/// Ten cycles. Each adds what the cycle before removed; the first one adds vectors that were held back.
pub(crate) fn churn(corpus: &Corpus, effort: usize, n_queries: usize) -> Result<Churn> {
    let config = GraphConfig { links: LINKS, build_effort: BUILD_EFFORT, ..GraphConfig::default() };
    let mut graph = Graph::new(Metric::Cosine, corpus.dimension, config)?;
    let vectors: Vec<&[f32]> = corpus.base().collect();
    let n = vectors.len() * 10 / 11;
    let (mut present, mut absent): (Vec<(u32, usize)>, Vec<usize>) =
        (Vec::new(), (n..vectors.len()).collect());
    for (i, vector) in vectors[..n].iter().enumerate() {
        present.push((graph.insert(vector)?, i));
    }
    let queries: Vec<&[f32]> = corpus.queries().take(n_queries).collect();
    let recall = |graph: &Graph| -> Result<f64> {
        let (mut hits, mut all) = (0, 0);
        for query in &queries {
            let truth = graph.exact().search(query, &Search::new(K))?;
            let found = graph.search(query, &Search::new(K).effort(effort))?;
            hits += found.iter().filter(|n| truth.iter().any(|t| t.slot == n.slot)).count();
            all += truth.len();
        }
        Ok(hits as f64 / all as f64)
    };
    let (mut recalls, mut times) = (vec![recall(&graph)?], Vec::new());
    for cycle in 0..10 {
        let n_changed = absent.len().min(present.len());
        // Every tenth point, different ones in each cycle; then the same number is added.
        let mut gone = Vec::new();
        let changed: Vec<usize> = (0..n_changed).map(|i| (i * 10 + cycle) % present.len()).collect();
        for &at in &changed {
            let (slot, vector) = present[at];
            let start = Instant::now();
            graph.remove(slot);
            times.push(start.elapsed().as_secs_f64() * 1e3);
            gone.push(vector);
        }
        for (&at, &vector) in changed.iter().zip(&absent) {
            present[at] = (graph.insert(vectors[vector])?, vector);
        }
        absent = gone;
        recalls.push(recall(&graph)?);
    }
    let quantile = |q| stats::quantile(&times, q);
    Ok(Churn { effort, recall: recalls, removal_p50_ms: quantile(0.5)?, removal_p99_ms: quantile(0.99)? })
}
