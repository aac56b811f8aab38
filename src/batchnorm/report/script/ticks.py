"""Chooses the numbers along an axis so that none touches another: a telephone has room for few."""

__all__ = ["TICKS"]

# The grid keeps its lines. Of 1, 2, 5, 10, 20 … the powers of ten are the ones to keep.
TICKS = """
const ruler = document.createElement("canvas").getContext("2d");
const gap = 7;  // pixels between two numbers

function wide(text) {
  // A raised figure is drawn at seven tenths.
  const [base, raised = ""] = text.replaceAll("</sup>", "").split("<sup>");
  ruler.font = "13px " + family;
  return ruler.measureText(base).width + 0.7 * ruler.measureText(raised).width;
}

// How many numbers there is room for: as wide as the ends are when they are written as finely as the steps between.
function count([low, high], pixels) {
  const places = Math.min(8, Math.max(0, Math.ceil(-Math.log10((high - low) / 4))));
  const widest = Math.max(...[low, high].map((end) => wide(end.toFixed(places))));
  return Math.max(2, Math.floor(pixels / (widest + 2 * gap)));
}

// As batchnorm.report.spoken writes it, with plotly's way to raise a power.
function written(value, places) {
  if (value === 0 || (Math.abs(value) < 1e5 && Math.abs(value) >= 1e-3) || places < 4 && Math.abs(value) < 1e5)
    return value.toLocaleString("en-US", {maximumFractionDigits: 8}).replace("-", "−");
  const [digits, power] = value.toExponential(6).split("e");
  return `${Number(digits)}·10<sup>${Number(power)}</sup>`.replaceAll("-", "−");
}

// Steps of 1, 2 or 5, as many as there is room for; where one number alone would be left, those of a finer step.
function even(range, pixels, most) {
  const [low, high] = range, rough = (high - low) / Math.min(most, count(range, pixels));
  const ten = 10 ** Math.floor(Math.log10(rough));
  const place = [1, 2, 5, 10].findIndex((step) => step * ten >= 0.9999 * rough);
  let step = [1, 2, 5, 10][place] * ten;
  if (Math.floor(high / step) <= Math.ceil(low / step)) step = [0.5, 1, 2, 5][place] * ten;
  const places = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)), tickvals = [];
  for (let number = Math.ceil(low / step); number <= high / step; number++)
    tickvals.push(Number((number * step).toFixed(Math.min(places, 20))));
  return {tickvals, ticktext: tickvals.map((value) => written(value, places))};
}

function thinned(own, pixels, margin) {
  const axis = own.tickvals ? own : {...own, ...even(own.range, pixels, own.nticks || 9)};
  const log = axis.type === "log", at = (value) => log ? Math.log10(value) : value;
  const [low, high] = axis.range;
  const ticks = axis.tickvals.map((value, number) => {
    const middle = (at(value) - low) / (high - low) * pixels, half = wide(axis.ticktext[number]) / 2;
    return {number, start: middle - half, end: middle + half, power: log && Math.abs(at(value) % 1) < 1e-9};
  });
  // From left to right, each that is clear of the one before.
  const within = (tick) => tick.start >= -margin.l && tick.end <= pixels + margin.r;
  const clear = (some) => some.filter(within).reduce((kept, tick) =>
    !kept.length || tick.start >= kept[kept.length - 1].end + gap ? [...kept, tick] : kept, []);
  const powers = ticks.filter((tick) => tick.power);
  const all = clear(ticks);
  const kept = all.length < ticks.length && powers.length > 1 ? clear(powers) : all;
  const shown = new Set(kept.map((tick) => tick.number));
  return {...axis, ticktext: axis.ticktext.map((text, number) => shown.has(number) ? text : "")};
}
"""
