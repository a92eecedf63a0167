package identifier

// PlanPrefixes returns for every state of the plan's automaton the digits that
// lead to it.
func (p *Phones) PlanPrefixes() []string {
	prefixes := map[uint16]string{p.plan.start: ""}
	list := []string{""}
	queue := []uint16{p.plan.start}
	for len(queue) > 0 {
		state := queue[0]
		queue = queue[1:]
		for d, next := range p.plan.next[state] {
			if _, ok := prefixes[next]; !ok && next > planAccepts {
				prefixes[next] = prefixes[state] + string(rune('0'+d))
				list = append(list, prefixes[next])
				queue = append(queue, next)
			}
		}
	}
	return list
}

// NewPlan compiles the plan of North America once more.
func NewPlan() error {
	_, err := newPlan()
	return err
}
