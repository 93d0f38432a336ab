// Every section's plain charts; see benchmarks/charts.py.
plotly.then(() => {
  for (const { charts } of Object.values(REPORT)) {
    for (const { id, traces, layout } of charts ?? [])
      Plotly.newPlot(
        id,
        traces,
        { margin: { l: 60, r: 15, t: 10, b: 60 }, paper_bgcolor: "#fff", plot_bgcolor: "#fff", hoverlabel: { align: "left" }, showlegend: traces.length > 1, ...layout },
        { responsive: true, displaylogo: false, toImageButtonOptions: { format: "svg", filename: id } },
      );
  }
});
