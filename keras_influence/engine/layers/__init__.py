"""What single layers see and give: sites, views, contraction, Kronecker factors."""
