"""What single layers see and give: sites, views, contraction, parts, Kronecker factors."""
