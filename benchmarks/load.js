// What k6 does in `make load-test`: it sends requests at a rate of its own, whatever the server does. See load.py.
import http from "k6/http";

const plan = JSON.parse(open(__ENV.PLAN));
const bodies = plan.bodies.map((path) => open(path, "b"));

export const options = {
  scenarios: { load: plan.scenario },
  batch: 1000, // the images of a truck are sent at the same time
  batchPerHost: 0,
  discardResponseBodies: true,
};

function request(number) {
  return ["POST", plan.url, bodies[number % bodies.length], { headers: plan.headers, timeout: "30s" }];
}

export default function () {
  const number = __VU * 7919 + __ITER;
  if (plan.together === 1) http.request(...request(number));
  else http.batch(Array.from({ length: plan.together }, (_, i) => request(number + i)));
}
