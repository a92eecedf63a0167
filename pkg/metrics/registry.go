package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// definition is one line of the golden list.
type definition struct {
	name, kind, unit, help string
	labels                 []string
}

// registry registers collectors and keeps what it registered, so that the
// golden list is made from the very calls that make the metrics.
type registry struct {
	reg         prometheus.Registerer
	definitions []definition
}

func (r *registry) define(d definition) {
	r.definitions = append(r.definitions, d)
}

func (r *registry) counter(name, unit, help string, labels ...string) *prometheus.CounterVec {
	r.define(definition{name, "counter", unit, help, labels})
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	r.reg.MustRegister(v)
	return v
}

func (r *registry) gauge(name, unit, help string, labels ...string) *prometheus.GaugeVec {
	r.define(definition{name, "gauge", unit, help, labels})
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	r.reg.MustRegister(v)
	return v
}

// seconds makes a histogram of durations with the given upper bounds.
func (r *registry) seconds(name, help string, bounds []float64, labels ...string) *prometheus.HistogramVec {
	r.define(definition{name, "histogram", "seconds", help, labels})
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: bounds}, labels)
	r.reg.MustRegister(v)
	return v
}

// desc describes a gauge that a collector of ours makes at each scrape.
func (r *registry) desc(name, unit, help string, labels ...string) *prometheus.Desc {
	r.define(definition{name, "gauge", unit, help, labels})
	return prometheus.NewDesc(name, help, labels, nil)
}

// product calls make with each combination of one value of each set, in order.
func product(with func(values ...string), sets ...[]string) {
	combinations := [][]string{nil}
	for _, set := range sets {
		var longer [][]string
		for _, head := range combinations {
			for _, value := range set {
				longer = append(longer, append(slices.Clip(head), value))
			}
		}
		combinations = longer
	}
	for _, values := range combinations {
		with(values...)
	}
}

// texts returns list as the values of a label.
func texts[T ~string](list []T) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = string(v)
	}
	return out
}
