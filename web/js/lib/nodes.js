// Finding nodes of the open graph, those inside subgraphs included. No side effects.

/** The id under which the server runs a node: "7", or "12:7" for node 7 inside subgraph 12. */
export function executionId(root, node) {
  return pathTo(root, node)?.join(":") ?? String(node.id);
}

function pathTo(graph, wanted) {
  for (const node of graph.nodes) {
    if (node === wanted) return [node.id];
    const inside = node.subgraph && pathTo(node.subgraph, wanted);
    if (inside) return [node.id, ...inside];
  }
  return null;
}

/** The node with an execution id, or undefined. */
export function nodeWithExecutionId(root, id) {
  let graph = root;
  let node;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node ?? undefined;
}

/** All nodes of a type, those inside subgraphs included. */
export function nodesOfType(root, type) {
  return root.nodes.flatMap((node) => [
    ...(node.comfyClass === type ? [node] : []),
    ...(node.subgraph ? nodesOfType(node.subgraph, type) : []),
  ]);
}
